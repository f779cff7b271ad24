//! Family logprob: log-probability, entropy, log-sum-exp, Σp² and the gradient of the logits, per row of a case.
//!
//! Tensors: `BASE/logits` `[T, V]`, `BASE/targets` `[T]`, `BASE/d_logp`, `BASE/d_entropy` `[T]` with BASE the case's name up to its last
//! slash; `NAME/temperature`, `NAME/logp`, `NAME/entropy`, `NAME/lse`, `NAME/sum_p2` `[T]` and, where the case says so,
//! `NAME/d_logits` `[T, V]`. The mathematics has one meaning whoever wrote it down, so every producer is accepted.

use moerl::element::{Element, Scalar, bf16, f16};
use moerl::logprob::{Backward, Config, Forward, Gradient, Partial};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Buffer};

use super::{Case, Compared, Stop, Tolerance, unsupported};

/// The expected values were computed in f64 and cast: half an ulp of f32 is theirs (6e-8), the rest is f32 sums over V columns.
/// The absolute part is for values near 0, where a log-probability is the difference of two rounded numbers.
const VALUE: Tolerance = Tolerance { relative: 1e-6, absolute: 2e-6 };
/// A sum of squares has no cancellation: the relative errors of two exponentials and one division.
const SUM_P2: Tolerance = Tolerance { relative: 4e-6, absolute: 0.0 };
/// A product of three rounded factors (upstream, probability, entropy term), whose difference may cancel against the upstream of
/// order 1 at the chosen column.
const GRADIENT: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-6 };

/// Runs one case.
pub(super) fn check<B: Backend>(backend: &B, case: &Case<'_>) -> Result<Compared, Stop> {
    case.config(&[])?;
    let base = case.id.rsplit_once('/').map_or(case.id.as_str(), |(base, _)| base);
    let name = format!("{base}/logits");
    match case.file.tensor(&name).and_then(|tensor| tensor.element) {
        Some(Element::F32) => run::<B, f32>(backend, case, base),
        Some(Element::Bf16) => run::<B, bf16>(backend, case, base),
        Some(Element::F16) => run::<B, f16>(backend, case, base),
        Some(other) => unsupported(format!("logits of {other}")),
        None => Err(Stop::Fail(format!("tensor {name} is missing or of a type that logits cannot have"))),
    }
}

fn run<B: Backend, T: Scalar>(backend: &B, case: &Case<'_>, base: &str) -> Result<Compared, Stop> {
    let (logits, shape) = case.tensor::<T>(&format!("{base}/logits"))?;
    let &[rows, columns] = shape.as_slice() else {
        return Err(Stop::Fail(format!("tensor {base}/logits has shape {shape:?}, needs [T, V]")));
    };
    let expected = |name: &str, len: usize| case.values::<f32>(&format!("{}/{name}", case.id), len);
    let stream = backend.stream()?;
    let logits = backend.upload(&stream, &logits)?;
    let logits = Matrix::new(logits.view(), rows, columns)?;
    let tokens = backend.upload(&stream, &case.values::<i32>(&format!("{base}/targets"), rows)?)?;
    let tokens = Matrix::new(tokens.view(), rows, 1)?;
    let temperature = backend.upload(&stream, &expected("temperature", rows)?)?;
    let config = Config::default();

    let mut outputs = Vec::new();
    for _ in 0..4 {
        outputs.push(backend.allocate::<f32>(&stream, rows)?);
    }
    let [logprobs, entropy, lse, sum_p2] = &mut outputs[..] else { unreachable!("four outputs") };
    let mut saved = backend.allocate::<Partial>(&stream, rows)?;
    let mut errors = backend.error_word(&stream)?;
    let forward = Forward {
        tokens: Some(tokens),
        temperature: Some(temperature.view()),
        logprobs: Some(logprobs.view_mut()),
        entropy: Some(entropy.view_mut()),
        lse: Some(lse.view_mut()),
        sum_p2: Some(sum_p2.view_mut()),
        saved: Some(saved.view_mut()),
        errors: Some(errors.view_mut()),
        ..Forward::new(logits)
    };
    backend.logprob_forward(&stream, &config, forward)?;
    backend.check(&stream, &mut errors)?;

    let mut compared = Compared::default();
    let tolerances = [("logp", VALUE), ("entropy", VALUE), ("lse", VALUE), ("sum_p2", SUM_P2)];
    for ((name, tolerance), output) in tolerances.into_iter().zip(&outputs) {
        compared.close(name, &backend.download(&stream, output.view())?, &expected(name, rows)?, tolerance);
    }
    if case.has(&format!("{}/d_logits", case.id)) {
        let d_logprobs = backend.upload(&stream, &case.values::<f32>(&format!("{base}/d_logp"), rows)?)?;
        let d_entropy = backend.upload(&stream, &case.values::<f32>(&format!("{base}/d_entropy"), rows)?)?;
        let mut d_logits = backend.allocate::<f32>(&stream, rows * columns)?;
        let gradient = Gradient::Into { logits, d_logits: MatrixMut::new(d_logits.view_mut(), rows, columns)? };
        let backward = Backward {
            tokens: Some(tokens),
            temperature: Some(temperature.view()),
            d_logprobs: Some(d_logprobs.view()),
            d_entropy: Some(d_entropy.view()),
            ..Backward::new(gradient, saved.view())
        };
        backend.logprob_backward(&stream, &config, backward)?;
        let found = backend.download(&stream, d_logits.view())?;
        compared.close("d_logits", &found, &expected("d_logits", rows * columns)?, GRADIENT);
    }
    Ok(compared)
}
