//! What a call has in place of logits, and in place of their gradient.

use std::ops::Range;

use super::{Config, Footprint, ROW_ALIGNMENT, Shape};
use crate::element::Element;
use crate::error::{Checks, Extent, Kind, Result};
use crate::logprob::{Backward, Forward, PartialCall, Sizes};
use crate::memory::{Layout, Matrix, MatrixMut, Memory, ViewMut};

/// What the logits are a product of.
///
/// Every row must begin at a multiple of 16 bytes and be a multiple of 16 bytes long.
#[derive(Debug)]
pub struct Projection<'a, M> {
    /// `[N, H]` in the head's [`operand`](super::Head::operand) type. Row `u` predicts the tokens of row `u`. Rows that are masked but not left out by
    /// `rows` must be finite, since they are factors of the weight's gradient.
    pub hidden: Matrix<'a, M>,
    /// `[V, H]` in the same type: a row for every token of this shard. Rows behind the vocabulary must be finite, since they are factors of the
    /// gradient of hidden states.
    pub weight: Matrix<'a, M>,
    /// The rows that are needed, where the host knows them: ascending, apart from one another, best in few long runs. Other rows are absent:
    /// outputs and gradients are as of masked rows, and no product is made for them.
    pub rows: Option<&'a [Range<usize>]>,
    /// Scratch memory of at least [`Footprint::workspace`].
    pub workspace: ViewMut<'a, u8, M>,
}

impl<'a, M: Memory> Projection<'a, M> {
    /// All rows of these.
    pub fn new(hidden: Matrix<'a, M>, weight: Matrix<'a, M>, workspace: ViewMut<'a, u8, M>) -> Self {
        Projection { hidden, weight, rows: None, workspace }
    }

    /// Their sizes.
    pub fn shape(&self) -> Shape {
        Shape { rows: self.hidden.rows(), hidden: self.hidden.columns(), vocabulary: self.weight.rows() }
    }

    /// The facts of the logits, which are nowhere as a whole.
    fn logits(&self, config: &Config) -> Matrix<'a, M> {
        Matrix::nowhere(config.head.logits(), self.hidden.rows(), self.weight.rows())
    }

    fn check(&self, checks: &mut Checks, config: &Config, footprint: &Footprint) {
        let Shape { hidden, vocabulary, .. } = self.shape();
        checks.merge(config.chunk_rows(vocabulary).map(|_| ()));
        checks
            .require(hidden > 0, Kind::Shape, "hidden", || "has no columns".into())
            .require(self.weight.columns() == hidden, Kind::Shape, "weight", || {
                format!(
                    "has shape [{vocabulary}, {}], needs [V, {hidden}] as hidden is [{}, {hidden}]: a row of the weight for every token",
                    self.weight.columns(),
                    self.hidden.rows()
                )
            });
        check_operand(checks, config, "hidden", self.hidden.layout());
        check_operand(checks, config, "weight", self.weight.layout());
        self.check_rows(checks);
        checks.require(self.workspace.len() >= footprint.workspace(), Kind::Workspace, "workspace", || {
            format!("has {} bytes, needs {}", self.workspace.len(), footprint.workspace())
        });
    }

    fn check_rows(&self, checks: &mut Checks) {
        let mut end = 0;
        for range in self.rows.unwrap_or_default() {
            let valid = end <= range.start && range.start < range.end && range.end <= self.hidden.rows();
            checks.require(valid, Kind::Shape, "rows", || {
                format!("name {range:?} after row {end}, need ascending ranges of {} rows", self.hidden.rows())
            });
            end = range.end.max(end);
        }
    }

    fn extents(&self) -> [Option<Extent>; 3] {
        [
            Some(self.hidden.layout().extent("hidden", false)),
            Some(self.weight.layout().extent("weight", false)),
            Some(self.workspace.extent("workspace")),
        ]
    }
}

/// Something that the products read or write.
fn check_operand(checks: &mut Checks, config: &Config, name: &'static str, matrix: &Layout) {
    let operand = config.head.operand();
    checks.require(matrix.element == operand, Kind::Dtype, name, || {
        format!("holds {}, a head of {:?} needs {operand}", matrix.element, config.head)
    });
    check_alignment(checks, name, matrix);
}

fn check_alignment(checks: &mut Checks, name: &'static str, matrix: &Layout) {
    let bytes = |elements: usize| elements * matrix.element.size();
    let numbers = [matrix.address, bytes(matrix.row_stride), bytes(matrix.columns)];
    checks.require(
        matrix.rows == 0 || numbers.iter().all(|n| n.is_multiple_of(ROW_ALIGNMENT)),
        Kind::Alignment,
        name,
        || {
            let [address, stride, row] = numbers;
            format!(
                "begins at {address:#x} with rows of {row} bytes, {stride} apart; needs multiples of {ROW_ALIGNMENT}"
            )
        },
    );
}

/// Where the gradients of hidden states and weight go.
#[derive(Debug)]
pub struct Gradients<'a, M> {
    /// What the logits were a product of. Of the same numbers and in the same chunks as in the forward call, so that they are the same.
    pub projection: Projection<'a, M>,
    /// `[N, H]` in the operands' type or f32: written. Over vocabulary shards a partial sum.
    pub d_hidden: Option<MatrixMut<'a, M>>,
    /// The weight's.
    pub d_weight: Option<WeightGradient<'a, M>>,
}

impl<'a, M: Memory> Gradients<'a, M> {
    /// None yet.
    pub fn new(projection: Projection<'a, M>) -> Self {
        Gradients { projection, d_hidden: None, d_weight: None }
    }
}

/// The gradient of the weight, `[V, H]`.
#[derive(Debug)]
pub enum WeightGradient<'a, M> {
    /// A main gradient in f32 that is added to.
    Added(MatrixMut<'a, M>),
    /// Written, without gaps between the rows: in f32, or rounded once to the weight's type.
    Written(MatrixMut<'a, M>),
}

impl<'a, M: Memory> WeightGradient<'a, M> {
    fn matrix(&self) -> &MatrixMut<'a, M> {
        match self {
            WeightGradient::Added(matrix) | WeightGradient::Written(matrix) => matrix,
        }
    }
}

impl<'a, M: Memory> Gradients<'a, M> {
    pub(crate) fn footprint(&self, config: &Config) -> Footprint {
        config.backward_footprint(
            &self.projection.shape(),
            self.d_hidden.as_ref().map(MatrixMut::element),
            self.d_weight.as_ref().map(|gradient| gradient.matrix().element()),
        )
    }

    fn check(&self, checks: &mut Checks, config: &Config) {
        let Shape { rows, hidden, vocabulary } = self.projection.shape();
        let operand = config.head.operand();
        checks.require(self.d_hidden.is_some() || self.d_weight.is_some(), Kind::MissingInput, "d_hidden", || {
            "or d_weight is needed".into()
        });
        if let Some(d_hidden) = &self.d_hidden {
            checks.shape("d_hidden", &[d_hidden.rows(), d_hidden.columns()], &[rows, hidden]).require(
                [operand, Element::F32].contains(&d_hidden.element()),
                Kind::Dtype,
                "d_hidden",
                || format!("holds {}, needs {operand} or f32", d_hidden.element()),
            );
            check_alignment(checks, "d_hidden", d_hidden.layout());
        }
        let Some(gradient) = &self.d_weight else { return };
        let d_weight = gradient.matrix();
        let (is_type, is_dense, types) = match gradient {
            WeightGradient::Added(_) => (d_weight.element() == Element::F32, true, "f32, to be added to".to_owned()),
            WeightGradient::Written(_) => (
                [operand, Element::F32].contains(&d_weight.element()),
                d_weight.layout().has_no_gaps(),
                format!("{operand} or f32"),
            ),
        };
        checks
            .shape("d_weight", &[d_weight.rows(), d_weight.columns()], &[vocabulary, hidden])
            .require(is_type, Kind::Dtype, "d_weight", || format!("holds {}, needs {types}", d_weight.element()))
            .require(is_dense, Kind::Shape, "d_weight", || "has gaps between its rows, needs to be without".into());
        check_alignment(checks, "d_weight", d_weight.layout());
    }

    fn extents(&self) -> [Option<Extent>; 2] {
        [
            self.d_hidden.as_ref().map(|matrix| matrix.layout().extent("d_hidden", true)),
            self.d_weight.as_ref().map(|gradient| gradient.matrix().layout().extent("d_weight", true)),
        ]
    }
}

impl<'a, M: Memory> Forward<'a, M, Projection<'a, M>> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// As that of a call on logits; and what does not fit of the projection.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let (sizes, mut checks) = self.check(&config.logprob, &self.logits.logits(config));
        self.logits.check(&mut checks, config, &config.forward_footprint(&self.logits.shape()));
        checks.disjoint(&[&self.logits.extents()[..], &self.extents()].concat());
        checks.finish().map(|()| sizes)
    }
}

impl<'a, M: Memory> PartialCall<'a, M, Projection<'a, M>> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// As that of a call on logits; and what does not fit of the projection.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let (sizes, mut checks) = self.check(&config.logprob, &self.logits.logits(config));
        self.logits.check(&mut checks, config, &config.forward_footprint(&self.logits.shape()));
        checks.disjoint(&[&self.logits.extents()[..], &self.extents()].concat());
        checks.finish().map(|()| sizes)
    }
}

impl<'a, M: Memory> Backward<'a, M, Gradients<'a, M>> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// As that of a call on logits; and what does not fit of the projection and the gradients.
    pub fn validate(&self, config: &Config) -> Result<Sizes> {
        let projection = &self.gradient.projection;
        let (sizes, mut checks) = self.check(&config.logprob, &projection.logits(config));
        projection.check(&mut checks, config, &self.gradient.footprint(config));
        self.gradient.check(&mut checks, config);
        let extents = [&projection.extents()[..], &self.gradient.extents(), &self.extents()];
        checks.disjoint(&extents.concat());
        checks.finish().map(|()| sizes)
    }
}
