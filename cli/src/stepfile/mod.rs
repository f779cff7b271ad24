//! The step file: one policy update as a safetensors file.
//!
//! [`StepFile::open`] checks every tensor's type and shape against the others before anything is computed, so that what follows
//! may index freely. Values (ids, log-probabilities) are checked where they are used, by the operations themselves.

mod container;
mod writer;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use moerl::element::{Element, Scalar};
use moerl::gate::{MAX_EXPERTS, MAX_TOP_K};

pub use container::{Container, Tensor, dtype_name, map_file, safetensors_name};
pub use writer::{Slot, Writer};

use crate::failure::{Failure, Result};

/// The most layers: faults name the layer in 16 bits.
pub const MAX_LAYERS: usize = 1 << 16;

/// What stands for an expert that was not recorded.
pub const MISSING: i64 = -1;

/// Other names under which a tensor is accepted.
const ALIASES: &[(&str, &str)] =
    &[("old_logprobs", "logp_old"), ("rollout_logprobs", "logp_rollout"), ("ref_logprobs", "logp_ref")];

/// What may stand before a dimension's number in a shape: its letter in the documentation.
#[derive(Clone, Copy, Debug)]
struct Dimension(&'static str, usize);

/// Where the advantages come from.
#[derive(Clone, Copy, Debug)]
pub enum AdvantageSource<'a> {
    /// `advantages` `[N]`.
    PerToken(Tensor<'a>),
    /// `advantage` `[S]`.
    PerSegment(Tensor<'a>),
    /// `reward` `[S]`, to be normalised within the groups.
    Reward(Tensor<'a>),
}

/// What the current policy's log-probabilities come from.
#[derive(Clone, Copy, Debug)]
pub enum PolicySource<'a> {
    /// Logits `[N, V]`.
    Logits(Tensor<'a>),
    /// Log-probabilities of the tokens, `[N]`.
    Logprobs(Tensor<'a>),
}

/// Which recorded experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// By the rollout engine: `routes_rollout`.
    Rollout,
    /// By the trainer under the old policy: `routes_old`.
    Old,
}

impl Recorded {
    /// The tensor's name.
    pub fn tensor(self) -> &'static str {
        match self {
            Recorded::Rollout => "routes_rollout",
            Recorded::Old => "routes_old",
        }
    }

    /// `rollout` or `old`.
    pub fn name(self) -> &'static str {
        match self {
            Recorded::Rollout => "rollout",
            Recorded::Old => "old",
        }
    }
}

/// Log-probabilities that a step may have beside the current ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `old_logprobs`.
    Old,
    /// `rollout_logprobs`.
    Rollout,
    /// `ref_logprobs`.
    Reference,
}

impl Policy {
    /// The tensor's first name.
    pub fn tensor(self) -> &'static str {
        match self {
            Policy::Old => "old_logprobs",
            Policy::Rollout => "rollout_logprobs",
            Policy::Reference => "ref_logprobs",
        }
    }
}

/// An open step file whose tensors fit each other.
#[derive(Debug)]
pub struct StepFile {
    container: Container,
    /// N.
    pub tokens: usize,
    /// S.
    pub segments: usize,
    /// V, where the file has logits.
    pub vocabulary: Option<usize>,
    /// L and E, where the file has router logits.
    pub router: Option<(usize, usize)>,
    /// k, where the file has routes.
    pub chosen: Option<usize>,
    /// Packed offsets, `[S+1]`.
    pub offsets: Vec<i64>,
    used: Vec<String>,
}

impl StepFile {
    /// Opens a step file and checks its tensors' types and shapes.
    ///
    /// # Errors
    /// [`Failure::Input`] that names the file, every tensor at fault, what was found and what is needed.
    pub fn open(path: &Path) -> Result<StepFile> {
        let container = Container::open(path)?;
        let named = |problems: Vec<String>| Failure::input(format!("{}: {}", path.display(), problems.join("; ")));
        let mut check = Check { container: &container, problems: Vec::new(), used: Vec::new() };
        let facts = check.all();
        let Check { problems, used, .. } = check;
        match facts {
            Some(facts) if problems.is_empty() => Ok(StepFile {
                tokens: facts.tokens,
                segments: facts.offsets.len() - 1,
                vocabulary: facts.vocabulary,
                router: facts.router,
                chosen: facts.chosen,
                offsets: facts.offsets,
                used,
                container,
            }),
            _ => Err(named(problems)),
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.container.path()
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.container.len()
    }

    /// Tensors that a step takes no notice of, with type and shape.
    pub fn ignored(&self) -> Vec<String> {
        let names = self.container.names().into_iter().filter(|name| !self.used.contains(name));
        names
            .map(|name| self.container.tensor(&name).map_or(name.clone(), |t| format!("{name} {}", t.describe())))
            .collect()
    }

    /// Any tensor of the file by its name, also one that a step takes no notice of.
    pub fn tensor<'a>(&'a self, name: &'a str) -> Option<Tensor<'a>> {
        self.container.tensor(name)
    }

    fn present(&self, name: &'static str) -> Option<Tensor<'_>> {
        self.used.iter().find(|used| *used == name).and_then(|name| self.container.tensor(name))
    }

    /// The chosen tokens of `rows`.
    pub fn token_ids(&self, rows: Range<usize>) -> Cow<'_, [i32]> {
        self.present("tokens").map_or_else(Default::default, |t| t.elements(rows))
    }

    /// 1 where a token counts, `[N]`.
    pub fn loss_mask(&self) -> Cow<'_, [u8]> {
        self.present("loss_mask").map_or_else(|| Cow::Owned(vec![1; self.tokens]), |t| t.all())
    }

    /// The prompt of each segment, `[S]`.
    pub fn group(&self) -> Option<Cow<'_, [i32]>> {
        self.present("group").map(|t| t.all())
    }

    /// Where the advantages come from; the check of the file made sure of one.
    pub fn advantage(&self) -> Option<AdvantageSource<'_>> {
        let per_token = self.present("advantages").map(AdvantageSource::PerToken);
        let per_segment = || self.present("advantage").map(AdvantageSource::PerSegment);
        per_token.or_else(per_segment).or_else(|| self.present("reward").map(AdvantageSource::Reward))
    }

    /// The rewards `[S]`, also where the file has advantages; `by` is the option that needs them.
    ///
    /// # Errors
    /// [`Failure::Input`] where they are missing or of another type or shape.
    pub fn reward(&self, by: &str) -> Result<Cow<'_, [f32]>> {
        let tensor = self
            .container
            .tensor("reward")
            .ok_or_else(|| Failure::input(format!("reward: missing, needed by {by}")))?;
        if tensor.element != Some(Element::F32) || tensor.shape != [self.segments] {
            let found = tensor.describe();
            return Err(Failure::input(format!("reward: is {found}, needs f32 [S = {}]", self.segments)));
        }
        Ok(tensor.all())
    }

    /// What the current log-probabilities come from; the check of the file made sure of one.
    pub fn policy(&self) -> Option<PolicySource<'_>> {
        let logits = self.present("logits").or_else(|| self.present("logits_bf16")).map(PolicySource::Logits);
        logits.or_else(|| self.present("logprobs").map(PolicySource::Logprobs))
    }

    /// Recorded log-probabilities, `[N]`.
    pub fn logprobs(&self, policy: Policy) -> Option<Cow<'_, [f32]>> {
        let name = policy.tensor();
        let alias = ALIASES.iter().find(|(first, _)| *first == name).map(|&(_, alias)| alias);
        self.present(name).or_else(|| alias.and_then(|alias| self.present(alias))).map(|t| t.all())
    }

    /// Router logits `[L, N, E]`, f32 or bf16.
    pub fn router_logits(&self) -> Option<Tensor<'_>> {
        self.present("router_logits")
    }

    /// Recorded experts `[N, L, k]`.
    pub fn routes(&self, which: Recorded) -> Option<Tensor<'_>> {
        self.present(which.tensor())
    }

    /// Elements of the recorded experts `[N, L, k]`, in order; [`MISSING`] where all bits are one, which stands for "not recorded". Empty
    /// without routes.
    pub fn recorded_ids(&self, which: Recorded, elements: Range<usize>) -> Vec<i64> {
        let Some(routes) = self.routes(which) else { return Vec::new() };
        // A byte names 256 experts only if none of its values means "not recorded".
        let has_sentinel = self.router.is_none_or(|(_, experts)| experts != 256);
        let known = |id: i64, sentinel: i64| if id == sentinel { MISSING } else { id };
        match routes.element {
            Some(Element::U8) => {
                let sentinel = if has_sentinel { 0xff } else { MISSING };
                routes.elements::<u8>(elements).iter().map(|&id| known(id.into(), sentinel)).collect()
            }
            Some(Element::U16) => routes.elements::<u16>(elements).iter().map(|&id| known(id.into(), 0xffff)).collect(),
            Some(Element::I16) => routes.elements::<i16>(elements).iter().map(|&id| id.into()).collect(),
            _ => routes.elements::<i32>(elements).iter().map(|&id| id.into()).collect(),
        }
    }

    /// The selection bias of one layer, `[E]`.
    pub fn router_bias(&self, layer: usize) -> Option<Cow<'_, [f32]>> {
        let (_, experts) = self.router?;
        self.present("router_bias").map(|t| t.elements(layer * experts..(layer + 1) * experts))
    }

    /// The upstream gradient of the gate, `[L, N, k]`.
    pub fn d_topk_weights(&self) -> Option<Tensor<'_>> {
        self.present("d_topk_weights")
    }
}

/// What the shapes say.
struct Facts {
    tokens: usize,
    vocabulary: Option<usize>,
    router: Option<(usize, usize)>,
    chosen: Option<usize>,
    offsets: Vec<i64>,
}

/// Collects every fault of a file's tensors, and the names of those that are used.
struct Check<'a> {
    container: &'a Container,
    problems: Vec<String>,
    used: Vec<String>,
}

impl<'a> Check<'a> {
    fn all(&mut self) -> Option<Facts> {
        let tokens = self.required("tokens", &[Element::I32]).and_then(|t| self.shape(t, &[("N", None)])).map(|s| s[0]);
        let offsets = self.offsets(tokens);
        let (n, s) = (Dimension("N", tokens?), Dimension("S", offsets.as_ref()?.len() - 1));

        let float = &[Element::F32];
        self.vector("loss_mask", &[Element::U8], n);
        let grouped = self.vector("group", &[Element::I32], s);
        let per_token = self.vector("advantages", float, n);
        let per_segment = !per_token && self.vector("advantage", float, s);
        let reward = !per_token && !per_segment && self.vector("reward", float, s);
        if !(per_token || per_segment || reward) {
            self.problem("advantages", "missing, and so are advantage and reward: one of the three is needed".into());
        }
        if reward && !grouped {
            self.problem("group", format!("missing: needed to normalise reward, i32 [S = {}]", s.1));
        }
        for &(name, alias) in ALIASES {
            if !self.vector(name, float, n) {
                self.vector(alias, float, n);
            }
        }
        let vocabulary = self.policy(n);
        let (router, chosen) = self.router(n);
        Some(Facts { tokens: n.1, vocabulary, router, chosen, offsets: offsets? })
    }

    fn problem(&mut self, tensor: &str, message: String) {
        self.problems.push(format!("{tensor}: {message}"));
    }

    /// The tensor, if it is there and of one of these types; marks it as used.
    fn optional(&mut self, name: &'static str, types: &[Element]) -> Option<Tensor<'a>> {
        let tensor = self.container.tensor(name)?;
        self.used.push(name.to_owned());
        if tensor.element.is_some_and(|element| types.contains(&element)) {
            return Some(tensor);
        }
        let needed: Vec<&str> = types.iter().map(|element| element.name()).collect();
        self.problem(name, format!("holds {}, needs {}", dtype_name(tensor.dtype), needed.join(" or ")));
        None
    }

    fn required(&mut self, name: &'static str, types: &[Element]) -> Option<Tensor<'a>> {
        if self.container.tensor(name).is_none() {
            self.problem(name, "missing: every step file has it".into());
        }
        self.optional(name, types)
    }

    /// The tensor's shape, if it has these dimensions: a letter, and the number that it must be where that is known.
    fn shape(&mut self, tensor: Tensor<'a>, needed: &[(&'static str, Option<usize>)]) -> Option<&'a [usize]> {
        let fits =
            |(&found, (_, needed)): (&usize, &(&str, Option<usize>))| needed.is_none_or(|needed| needed == found);
        if tensor.shape.len() == needed.len() && tensor.shape.iter().zip(needed).all(fits) {
            return Some(tensor.shape);
        }
        let needed: Vec<String> = needed
            .iter()
            .map(|(letter, n)| n.map_or_else(|| (*letter).to_owned(), |n| format!("{letter} = {n}")))
            .collect();
        self.problem(tensor.name, format!("has shape {:?}, needs [{}]", tensor.shape, needed.join(", ")));
        None
    }

    /// True if the file has the vector, right or wrong.
    fn vector(&mut self, name: &'static str, types: &[Element], length: Dimension) -> bool {
        if let Some(tensor) = self.optional(name, types) {
            self.shape(tensor, &[(length.0, Some(length.1))]);
        }
        self.container.tensor(name).is_some()
    }

    fn offsets(&mut self, tokens: Option<usize>) -> Option<Vec<i64>> {
        const NAME: &str = "cu_seqlens";
        let tensor = self.required(NAME, Element::TOKENS)?;
        self.shape(tensor, &[("S+1", None)])?;
        let offsets = tensor.integers()?;
        let Some((&first, &last)) = offsets.first().zip(offsets.last()) else {
            self.problem(NAME, "is empty, needs S+1 offsets, the first 0".into());
            return None;
        };
        if first != 0 {
            self.problem(NAME, format!("begins with {first}, needs 0"));
        }
        if let Some(i) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            let (before, after) = (offsets[i], offsets[i + 1]);
            self.problem(NAME, format!("offset {} is {after}, less than {before} before it", i + 1));
        }
        if tokens.is_some_and(|tokens| last != tokens as i64) {
            self.problem(NAME, format!("ends with {last}, needs N = {}, the length of tokens", tokens.unwrap_or(0)));
        }
        Some(offsets)
    }

    /// `logits`, else `logits_bf16`, else `logprobs`. Returns V.
    fn policy(&mut self, n: Dimension) -> Option<usize> {
        for name in ["logits", "logits_bf16"] {
            if self.container.tensor(name).is_some() {
                let tensor = self.optional(name, Element::FLOATS)?;
                let vocabulary = self.shape(tensor, &[(n.0, Some(n.1)), ("V", None)])?[1];
                if vocabulary == 0 || vocabulary > i32::MAX as usize {
                    self.problem(name, format!("has V = {vocabulary} columns, needs 1 to {}", i32::MAX));
                }
                return Some(vocabulary);
            }
        }
        if !self.vector("logprobs", &[Element::F32], n) {
            self.problem("logits", "missing, and so are logits_bf16 and logprobs: one of the three is needed".into());
        }
        None
    }

    /// Router logits and what goes with them. Returns (L, E) and k.
    fn router(&mut self, n: Dimension) -> (Option<(usize, usize)>, Option<usize>) {
        let router = self.optional("router_logits", &[Element::F32, Element::Bf16]).and_then(|tensor| {
            let shape = self.shape(tensor, &[("L", None), (n.0, Some(n.1)), ("E", None)])?;
            Some((shape[0], shape[2]))
        });
        if let Some((layers, experts)) = router {
            if !(1..=MAX_EXPERTS).contains(&experts) {
                self.problem("router_logits", format!("has E = {experts} experts, needs 1 to {MAX_EXPERTS}"));
            }
            if layers > MAX_LAYERS {
                self.problem("router_logits", format!("has L = {layers} layers, needs at most {MAX_LAYERS}"));
            }
        }
        let layers = router.map(|(layers, _)| layers);
        let mut chosen = None;
        for name in ["routes_rollout", "routes_old"] {
            let Some(tensor) = self.optional(name, Element::ROUTES) else { continue };
            let Some(shape) = self.shape(tensor, &[(n.0, Some(n.1)), ("L", layers), ("k", chosen)]) else { continue };
            let most = router.map_or(MAX_TOP_K, |(_, experts)| experts.min(MAX_TOP_K));
            if !(1..=most).contains(&shape[2]) {
                self.problem(name, format!("has k = {} experts a token, needs 1 to {most}", shape[2]));
            }
            chosen = Some(shape[2]);
        }
        if let Some((layers, experts)) = router {
            if let Some(tensor) = self.optional("router_bias", &[Element::F32]) {
                self.shape(tensor, &[("L", Some(layers)), ("E", Some(experts))]);
            }
            if let Some(tensor) = self.optional("d_topk_weights", &[Element::F32]) {
                self.shape(tensor, &[("L", Some(layers)), (n.0, Some(n.1)), ("k", chosen)]);
            }
        }
        (router, chosen)
    }
}

/// A data file that ships with the project: under `$MOERL_DATA`, in `data` beside the executable, or in `tests/golden` of the source
/// tree that the command was started in.
///
/// # Errors
/// [`Failure::Input`] with the places looked at.
pub fn shipped(name: &str) -> Result<PathBuf> {
    let named = std::env::var_os("MOERL_DATA").map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|folder| folder.join("data")));
    let source = Some(PathBuf::from("tests/golden"));
    let tried: Vec<PathBuf> = [named, beside, source].into_iter().flatten().map(|folder| folder.join(name)).collect();
    tried.iter().find(|path| path.exists()).cloned().ok_or_else(|| {
        let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
        Failure::input(format!("no step file named, and the shipped one is at none of {}", tried.join(", ")))
    })
}

/// Values as they lie in a file.
fn bytes_of<T: Scalar>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}
