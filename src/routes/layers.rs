//! Which layers of a payload are which layers of the model.

use std::fmt;

use crate::error::{Checks, Error, Kind, Result};

/// A layer by the caller's own number: by custom its place among the model's hidden layers, dense ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Layer(pub u32);

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.0)
    }
}

/// Which hidden layers have experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoeLayers {
    /// Every one: Qwen3, Mixtral.
    All,
    /// All but the first so many: `first_k_dense_replace` of DeepSeek-V3 (3), Kimi K2 (1), GLM.
    AfterDense(usize),
    /// Layer i where `i ≥ first_dense` and `i mod step = phase`: Hugging Face's and Megatron's `moe_layer_freq` have phase 0,
    /// `decoder_sparse_step` s has phase s − 1.
    Every {
        /// Layers at the start that are dense in any case.
        first_dense: usize,
        /// The period.
        step: usize,
        /// Which layer of a period has experts.
        phase: usize,
    },
    /// These, in rising order.
    List(Vec<usize>),
}

/// What of a model decides the layers of its payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// `num_hidden_layers`, without layers for multi-token prediction.
    pub hidden_layers: usize,
    /// Layers for multi-token prediction behind them. A payload may have rows for them; they are dropped.
    pub mtp_layers: usize,
    /// Which of the hidden layers have experts.
    pub moe: MoeLayers,
    /// Hidden layers whose experts come from a table of token ids (DeepSeek-V4's first three): not replayed from a payload, which may
    /// hold anything for them.
    pub hash: Vec<usize>,
}

impl Model {
    /// So many hidden layers, all with experts.
    pub fn new(hidden_layers: usize) -> Model {
        Model { hidden_layers, mtp_layers: 0, moe: MoeLayers::All, hash: Vec::new() }
    }

    /// The hidden layers with experts, in rising order.
    ///
    /// # Errors
    /// `Config` for a rule that fits no layer, and for a list that does not rise or leaves the model.
    pub fn moe_layers(&self) -> Result<Vec<usize>> {
        let all = 0..self.hidden_layers;
        let layers: Vec<usize> = match &self.moe {
            MoeLayers::All => all.collect(),
            MoeLayers::AfterDense(dense) => all.skip(*dense).collect(),
            MoeLayers::Every { first_dense, step, phase } => {
                all.skip(*first_dense).filter(|i| i.checked_rem(*step) == Some(*phase)).collect()
            }
            MoeLayers::List(list) => list.clone(),
        };
        let rises = layers.windows(2).all(|pair| pair[0] < pair[1]);
        let outside = layers.iter().find(|&&layer| layer >= self.hidden_layers);
        let mut checks = Checks::new();
        checks
            .require(!layers.is_empty(), Kind::Config, "moe_layers", || {
                format!("{:?} leaves none of the {} hidden layers", self.moe, self.hidden_layers)
            })
            .require(rises, Kind::Config, "moe_layers", || format!("{layers:?} do not rise"))
            .require(outside.is_none(), Kind::Config, "moe_layers", || {
                format!("name layer {}, but the model has {}", outside.unwrap_or(&0), self.hidden_layers)
            });
        checks.finish()?;
        Ok(layers)
    }
}

/// What the layers of a payload count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Every hidden layer, with zeros for dense ones: SGLang, vLLM 0.14.
    HiddenLayers,
    /// Only layers with experts: vLLM from 0.21 on.
    MoeLayers,
}

/// One layer with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedLayer {
    /// Its name.
    pub layer: Layer,
    /// Its place in the payload.
    pub payload: usize,
    /// True if its experts come from a table of token ids.
    pub hash: bool,
}

/// Payload layer → layer with experts, in the order in which they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerMap {
    payload_layers: usize,
    layers: Vec<MappedLayer>,
}

impl LayerMap {
    /// Payload layer i is layer i.
    pub fn identity(payload_layers: usize) -> LayerMap {
        let layers = (0..payload_layers).map(|i| MappedLayer { layer: Layer(i as u32), payload: i, hash: false });
        LayerMap { payload_layers, layers: layers.collect() }
    }

    /// The map for a payload of so many layers: all hidden ones or those with experts, with or without those for multi-token
    /// prediction, whichever fits.
    ///
    /// # Errors
    /// `Routes` where nothing fits, or two readings fit that differ (then use [`with_form`](LayerMap::with_form)); `Config` for a model
    /// without layers.
    pub fn new(model: &Model, payload_layers: usize) -> Result<LayerMap> {
        let moe = model.moe_layers()?.len();
        let fits = |layers: usize| payload_layers == layers || payload_layers == layers + model.mtp_layers;
        match (fits(model.hidden_layers), fits(moe)) {
            (true, true) if moe != model.hidden_layers => Err(Error::invalid(
                Kind::Routes,
                "layers",
                format!(
                    "the payload has {payload_layers}, which may be all {} hidden layers or the {moe} with experts and \
                     {} for multi-token prediction; say which form it has",
                    model.hidden_layers, model.mtp_layers
                ),
            )),
            (true, _) => LayerMap::with_form(model, Form::HiddenLayers, payload_layers),
            (false, true) => LayerMap::with_form(model, Form::MoeLayers, payload_layers),
            (false, false) => Err(misfit(model, moe, payload_layers)),
        }
    }

    /// As [`new`](LayerMap::new), for a payload whose layers are known to be of this form.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_form(model: &Model, form: Form, payload_layers: usize) -> Result<LayerMap> {
        let moe = model.moe_layers()?;
        let needed = match form {
            Form::HiddenLayers => model.hidden_layers,
            Form::MoeLayers => moe.len(),
        };
        if payload_layers != needed && payload_layers != needed + model.mtp_layers {
            return Err(misfit(model, moe.len(), payload_layers));
        }
        let layers = moe.iter().enumerate().map(|(ordinal, &layer)| MappedLayer {
            layer: Layer(layer as u32),
            payload: if form == Form::HiddenLayers { layer } else { ordinal },
            hash: model.hash.contains(&layer),
        });
        Ok(LayerMap { payload_layers, layers: layers.collect() })
    }

    /// These layers alone, in this order: what one pipeline stage holds. Virtual stages interleave, so their order is stated.
    ///
    /// # Errors
    /// `Routes` for a layer that the map does not have or that is named twice.
    pub fn stage(&self, layers: &[Layer]) -> Result<LayerMap> {
        let mut chosen: Vec<MappedLayer> = Vec::new();
        for &layer in layers {
            let found = self.layers.iter().find(|mapped| mapped.layer == layer);
            let fault = |what: &str| Error::invalid(Kind::Routes, "layers", format!("{layer} {what}"));
            if chosen.iter().any(|mapped| mapped.layer == layer) {
                return Err(fault("is named twice"));
            }
            chosen.push(*found.ok_or_else(|| fault("is not a layer with experts"))?);
        }
        Ok(LayerMap { payload_layers: self.payload_layers, layers: chosen })
    }

    /// The layers of the payload, those that are dropped included.
    pub fn payload_layers(&self) -> usize {
        self.payload_layers
    }
    /// The layers with experts: their place here is their ordinal.
    pub fn layers(&self) -> &[MappedLayer] {
        &self.layers
    }
    /// The ordinal of a payload's layer; `None` for one that is dropped.
    pub fn ordinal(&self, payload_layer: usize) -> Option<usize> {
        self.layers.iter().position(|mapped| mapped.payload == payload_layer)
    }
}

fn misfit(model: &Model, moe: usize, payload_layers: usize) -> Error {
    let mtp = match model.mtp_layers {
        0 => String::new(),
        mtp => format!(", each with or without {mtp} for multi-token prediction"),
    };
    Error::invalid(
        Kind::Routes,
        "layers",
        format!(
            "the payload has {payload_layers}, needs all {} hidden layers or the {moe} with experts{mtp}",
            model.hidden_layers
        ),
    )
}
