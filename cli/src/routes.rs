//! `moerl routes inspect`: what a file of recorded experts holds, and everything that is wrong with it.

use std::fmt::Write;

use moerl::element::Element;
use moerl::gate::MAX_EXPERTS;
use moerl::routes::{
    Expected, LayerMap, LayerSurvey, Model, MoeLayers, Packing, Payload, RoutedExperts, Sglang, Survey,
};

use crate::Outcome;
use crate::arguments::{Inspect, RoutesFormat};
use crate::failure::{Failure, Result};
use crate::stepfile::{Container, Tensor, map_file};
use crate::table::{Table, count, number, percent, profile};

/// Columns of the load's chart.
const CHART: usize = 32;
/// Names of step-file tensors that hold recorded experts begin so.
const TENSOR_NAMES: [&str; 2] = ["routes", "routed_experts"];

/// Runs the command.
///
/// # Errors
/// [`Failure::Input`] for a file that cannot be read as what it is said to be.
pub fn run(options: &Inspect) -> Result<Outcome> {
    let named = |failure: Failure| failure.during(options.file.display());
    let format = options.format.map_or_else(|| format_of(options), Ok)?;
    let mut report = Report { options, text: String::new(), defects: 0 };
    if format == RoutesFormat::Safetensors {
        report.tensors(&Container::open(&options.file)?).map_err(named)?;
    } else {
        let map = map_file(&options.file)?;
        let payload = payload(format, options, &map).map_err(named)?;
        report.heading(&format!("{} ({} bytes)", name_of(format), count(map.len() as u64)), &payload);
        report.inspect(&payload, options.experts, false).map_err(named)?;
    }
    Ok(Outcome { text: report.text, exit_code: u8::from(report.defects > 0) })
}

fn name_of(format: RoutesFormat) -> &'static str {
    match format {
        RoutesFormat::Sglang => "SGLang, base64 of i32",
        RoutesFormat::Vllm => "vLLM, npy",
        RoutesFormat::PrimeRl => "prime-rl, base64",
        RoutesFormat::Megatron => "Megatron, raw integers",
        RoutesFormat::Safetensors => "safetensors",
    }
}

fn format_of(options: &Inspect) -> Result<RoutesFormat> {
    match options.file.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => Ok(RoutesFormat::Vllm),
        Some("safetensors") => Ok(RoutesFormat::Safetensors),
        _ => Err(Failure::input(format!(
            "{}: its name ends in neither .npy nor .safetensors; say what it is with --format",
            options.file.display()
        ))),
    }
}

/// What the file holds, as far as its header or the options say.
fn payload<'a>(format: RoutesFormat, options: &Inspect, bytes: &'a [u8]) -> Result<Payload<'a>> {
    if format == RoutesFormat::Vllm {
        return Ok(Payload::vllm(bytes)?);
    }
    let lacks = |what: &str| Failure::input(format!("{} does not say its {what}: give --{what}", name_of(format)));
    let shape @ [rows, layers, columns] = options.shape.map(|shape| shape.0).ok_or_else(|| lacks("shape"))?;
    let element = || options.dtype.map(|dtype| dtype.0).ok_or_else(|| lacks("dtype"));
    // Editors and shells end a text with a newline, which is no base64.
    let text = bytes.trim_ascii_end();
    Ok(match format {
        RoutesFormat::Sglang => {
            let start_len = options.start_len;
            let tokens = options.tokens.unwrap_or(rows.saturating_add(start_len).saturating_add(1));
            Payload::sglang(text, Sglang { tokens, start_len, layers, columns })?
        }
        RoutesFormat::PrimeRl => Payload::prime_rl(text, element()?, shape)?,
        RoutesFormat::Megatron => Payload::megatron(bytes, element()?, shape)?,
        RoutesFormat::Vllm | RoutesFormat::Safetensors => unreachable!("headers say their shapes"),
    })
}

/// What is to be printed.
struct Report<'a> {
    options: &'a Inspect,
    text: String,
    defects: u64,
}

impl Report<'_> {
    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name:<10} {value}");
    }

    fn heading(&mut self, format: &str, payload: &Payload<'_>) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let [rows, layers, columns] = payload.shape();
        let order = if payload.is_big_endian() { ", high byte first" } else { "" };
        self.line("format", format);
        self.line("holds", format!("{} [{rows} rows, {layers} layers, {columns}]{order}", payload.element()));
    }

    /// Every tensor of recorded experts, and where each differs from the first.
    fn tensors(&mut self, file: &Container) -> Result<()> {
        let names = match &self.options.tensor {
            Some(name) => vec![name.clone()],
            None => recorded_tensors(file),
        };
        if names.is_empty() {
            let known: Vec<String> = file.names();
            return Err(Failure::input(format!(
                "no tensor of recorded experts (integers [rows, layers, k] whose name begins with {}); --tensor names one of {}",
                TENSOR_NAMES.join(" or "),
                known.join(", ")
            )));
        }
        let experts = self.options.experts.or_else(|| {
            let logits = file.tensor("router_logits").filter(|tensor| tensor.shape.len() == 3);
            logits.map(|tensor| tensor.shape[2])
        });
        let mut first: Option<(String, RoutedExperts)> = None;
        for name in names {
            let tensor = file.tensor(&name).ok_or_else(|| Failure::input(format!("no tensor {name}")))?;
            let payload = tensor_payload(&tensor).map_err(|failure| failure.during(&name))?;
            self.heading(&format!("safetensors, tensor {name}"), &payload);
            let routes = self.inspect(&payload, experts, true).map_err(|failure| failure.during(&name))?;
            match (&first, routes) {
                (Some((other, routes)), Some(own)) => self.changed(other, routes, &own),
                (None, Some(own)) => first = Some((name, own)),
                (_, None) => (),
            }
        }
        Ok(())
    }

    /// Rows, load, defects. The packed ids, if they are wanted and nothing is wrong.
    fn inspect(
        &mut self,
        payload: &Payload<'_>,
        experts: Option<usize>,
        wanted: bool,
    ) -> Result<Option<RoutedExperts>> {
        let [rows, payload_layers, columns] = payload.shape();
        let map = layer_map(self.options, payload_layers)?;
        let top_k = self.options.top_k.unwrap_or(columns);
        // Without a number, as many as there may be and still a sentinel.
        let assumed = if payload.element() == Element::U8 { 255 } else { MAX_EXPERTS };
        let mut expected = Expected {
            shared_columns: columns.saturating_sub(top_k),
            zeros_are_missing: self.options.zeros_are_missing,
            ..Expected::new(0, &map, experts.unwrap_or(assumed), top_k, rows)
        };
        if let Some(tokens) = self.options.tokens {
            expected.rows = tokens.saturating_sub(1).saturating_sub(self.options.start_len);
        }
        let survey = payload.survey(&expected, self.options.defects)?;
        let seen = survey.layers.iter().filter_map(|layer| layer.load.last_key_value()).map(|(&id, _)| id).max();
        let least = seen.map_or(1, |id| usize::from(id) + 1);
        self.summary(payload, &expected, &survey, experts, least);
        self.layers(&survey, experts.unwrap_or(least));
        self.defects(&survey);
        if survey.defect_count > 0 || !wanted {
            return Ok(None);
        }
        let packing = Packing::new(expected.experts, Element::U16)?;
        Ok(Some(payload.pack(&expected, packing)?))
    }

    fn summary(
        &mut self,
        payload: &Payload<'_>,
        expected: &Expected<'_>,
        survey: &Survey,
        experts: Option<usize>,
        least: usize,
    ) {
        let [_, payload_layers, columns] = payload.shape();
        let layers = survey.layers.len();
        self.line(
            "layers",
            match payload_layers - layers {
                0 => format!("{layers}, all with experts"),
                dropped => format!("{layers} with experts, {dropped} others dropped"),
            },
        );
        let seen: std::collections::BTreeSet<u16> =
            survey.layers.iter().flat_map(|layer| layer.load.keys().copied()).collect();
        self.line(
            "experts",
            match experts {
                Some(experts) => format!("{} seen of {experts}, {} a token", seen.len(), expected.top_k),
                None => format!(
                    "{} seen, at least {least} (the largest id; --experts states them), {} a token",
                    seen.len(),
                    expected.top_k
                ),
            },
        );
        let wire = payload_layers * columns * payload.element().size();
        let narrow = Packing::narrowest(experts.unwrap_or(least)).map_or(Element::U16, |packing| packing.element());
        let packed = moerl::routes::bytes_per_token(layers, expected.top_k, narrow);
        self.line("bytes", format!("{} a token, {} packed in {narrow}", count(wire as u64), count(packed as u64)));
    }

    fn layers(&mut self, survey: &Survey, experts: usize) {
        let mut table = Table::new(&[
            ">layer",
            ">replayable",
            ">missing",
            ">zeros",
            ">duplicates",
            ">out of range",
            ">partial",
            ">experts seen",
            ">max/mean",
            ">cv",
            "load",
        ]);
        let some = |n: u64| if n > 0 { count(n) } else { String::new() };
        for layer in &survey.layers {
            let load = Load::of(layer, experts);
            table.row([
                layer.layer.0.to_string(),
                count(layer.replayable),
                some(layer.missing),
                some(layer.zeros),
                some(layer.duplicates),
                some(layer.out_of_range),
                some(layer.partial),
                layer.load.len().to_string(),
                number(load.peak, 3),
                number(load.variation, 3),
                load.chart,
            ]);
        }
        let _ = write!(self.text, "\n{}", table.render());
    }

    fn defects(&mut self, survey: &Survey) {
        self.defects += survey.defect_count;
        self.text.push('\n');
        if survey.defect_count == 0 {
            self.line("defects", "none");
            return;
        }
        self.line("defects", count(survey.defect_count));
        for defect in &survey.defects {
            let _ = writeln!(self.text, "  {defect}");
        }
        let left = survey.defect_count - survey.defects.len() as u64;
        if left > 0 {
            let _ = writeln!(self.text, "  and {} more (--defects shows more)", count(left));
        }
    }

    /// Rows whose set of experts is not that of another recording of the same tokens.
    fn changed(&mut self, other: &str, theirs: &RoutedExperts, own: &RoutedExperts) {
        if (theirs.rows(), theirs.layers(), theirs.top_k()) != (own.rows(), own.layers(), own.top_k()) {
            self.line("changed", format!("not comparable with {other}: other rows, layers or k"));
            return;
        }
        let shares: Vec<String> = (0..own.layers().len())
            .map(|ordinal| {
                let set = |routes: &RoutedExperts, row| {
                    let layer = routes.array().layer(ordinal).ok()?;
                    let mut ids = layer.row_i64(row);
                    ids.sort_unstable();
                    Some(ids)
                };
                let changed = (0..own.rows()).filter(|&row| set(theirs, row) != set(own, row)).count();
                percent(changed as f64 / own.rows().max(1) as f64)
            })
            .collect();
        self.line("changed", format!("against {other}, by layer: {}", shares.join(" · ")));
    }
}

fn recorded_tensors(file: &Container) -> Vec<String> {
    let holds = |name: &String| {
        file.tensor(name).is_some_and(|tensor| tensor.shape.len() == 3 && integer(&tensor).is_some())
            && TENSOR_NAMES.iter().any(|start| name.starts_with(start))
    };
    let mut names: Vec<String> = file.names().into_iter().filter(holds).collect();
    // What the rollout engine recorded is what the others are compared with.
    names.sort_by_key(|name| (name != "routes_rollout", name.clone()));
    names
}

fn integer(tensor: &Tensor<'_>) -> Option<Element> {
    tensor.element.filter(|element| Element::INTEGERS.contains(element))
}

fn tensor_payload<'a>(tensor: &Tensor<'a>) -> Result<Payload<'a>> {
    let needed = || Failure::input(format!("is {}, needs integers [rows, layers, k]", tensor.describe()));
    let element = integer(tensor).ok_or_else(needed)?;
    let shape = <[usize; 3]>::try_from(tensor.shape).map_err(|_| needed())?;
    Ok(Payload::tensor(tensor.bytes(), element, shape)?)
}

fn layer_map(options: &Inspect, payload_layers: usize) -> Result<LayerMap> {
    let Some(hidden_layers) = options.hidden_layers else { return Ok(LayerMap::identity(payload_layers)) };
    let moe = MoeLayers::AfterDense(options.dense_first);
    let model = Model { mtp_layers: options.mtp_layers, moe, ..Model::new(hidden_layers) };
    Ok(LayerMap::new(&model, payload_layers)?)
}

/// How even a layer's load is.
struct Load {
    /// The busiest expert's tokens over the mean.
    peak: f64,
    /// Coefficient of variation.
    variation: f64,
    chart: String,
}

impl Load {
    fn of(layer: &LayerSurvey, experts: usize) -> Load {
        let total: u64 = layer.load.values().sum();
        let most = layer.load.values().max().copied().unwrap_or(0);
        let squares: f64 = layer.load.values().map(|&n| (n as f64).powi(2)).sum();
        let (experts_f, total_f) = (experts as f64, total as f64);
        let or_zero = |x: f64| if total == 0 { 0.0 } else { x };
        Load {
            peak: or_zero(most as f64 * experts_f / total_f),
            variation: or_zero((experts_f * squares - total_f * total_f).max(0.0).sqrt() / total_f),
            chart: chart(layer, experts),
        }
    }
}

/// The load over experts; ids beyond them count for the last.
fn chart(layer: &LayerSurvey, experts: usize) -> String {
    let mut load = vec![0; experts.max(1)];
    for (&expert, &n) in &layer.load {
        let last = load.len() - 1;
        load[usize::from(expert).min(last)] += n;
    }
    profile(&load, CHART)
}
