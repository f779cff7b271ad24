//! The routers of published models, by name.

use super::{Config, Groups, Renormalize, Score};

/// The score and normalisation that models share.
#[derive(Clone, Copy)]
enum Family {
    /// Softmax over the selected experts.
    Selected,
    /// Sigmoid with a selection bias, divided by the sum.
    BiasedSigmoid,
    /// As `BiasedSigmoid`, with half of eight groups admitted by their two best experts.
    GroupedSigmoid,
    /// √softplus with a selection bias, divided by the sum.
    BiasedSqrtSoftplus,
    /// Sigmoid as it is.
    PlainSigmoid,
    /// Softmax over all with a selection bias, divided by the sum or 1e-12.
    FlooredSoftmax,
}

struct Row {
    name: &'static str,
    top_k: Option<usize>,
    family: Family,
    scaling_factor: Option<f32>,
}

macro_rules! presets {
    ($($(#[$doc:meta])* $preset:ident = $name:literal, $k:expr, $family:ident, $scale:expr;)*) => {
        /// A published model's router. What E is, the logits say; what k is, a call may say otherwise.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum Preset { $($(#[$doc])* $preset,)* }

        impl Preset {
            /// All of them.
            pub const ALL: &[Preset] = &[$(Preset::$preset),*];

            const fn row(self) -> Row {
                match self {
                    $(Preset::$preset => Row { name: $name, top_k: $k, family: Family::$family, scaling_factor: $scale },)*
                }
            }
        }
    };
}

// Sizes and scales: the models' launch scripts in slime and miles, and the configurations published with the weights.
presets! {
    /// Mixtral 8×7B and 8×22B: 8 experts, 2 chosen.
    Mixtral = "mixtral", Some(2), Selected, Some(1.0);
    /// The GPT-OSS family: 4 chosen. The router's linear bias is part of the logits.
    GptOss = "gpt_oss", Some(4), Selected, Some(1.0);
    /// GPT-OSS 20B: 32 experts, 4 chosen.
    GptOss20b = "gpt_oss_20b", Some(4), Selected, Some(1.0);
    /// GPT-OSS 120B: 128 experts, 4 chosen.
    GptOss120b = "gpt_oss_120b", Some(4), Selected, Some(1.0);
    /// The Qwen3 MoE family: 128 experts, 8 chosen.
    Qwen3 = "qwen3", Some(8), Selected, Some(1.0);
    /// Qwen3 30B-A3B: 128 experts, 8 chosen, 48 layers.
    Qwen3_30bA3b = "qwen3_30b_a3b", Some(8), Selected, Some(1.0);
    /// Qwen3 235B-A22B: 128 experts, 8 chosen, 94 layers.
    Qwen3_235bA22b = "qwen3_235b_a22b", Some(8), Selected, Some(1.0);
    /// The Qwen3.5 MoE family: 256 experts, 8 chosen.
    Qwen3_5 = "qwen3_5", Some(8), Selected, Some(1.0);
    /// Qwen3.5 35B-A3B: 256 experts, 8 chosen, 40 layers.
    Qwen3_5_35bA3b = "qwen3_5_35b_a3b", Some(8), Selected, Some(1.0);
    /// The Qwen3-Next family: 512 experts, 10 chosen.
    Qwen3Next = "qwen3_next", Some(10), Selected, Some(1.0);
    /// Qwen3-Next 80B-A3B: 512 experts, 10 chosen, 48 layers.
    Qwen3Next80bA3b = "qwen3_next_80b_a3b", Some(10), Selected, Some(1.0);
    /// DeepSeek-V3: 256 experts in 8 groups of which 4 are admitted, 8 chosen, scale 2.5.
    DeepseekV3 = "deepseek_v3", Some(8), GroupedSigmoid, Some(2.5);
    /// Kimi K2: 384 experts, 8 chosen, scale 2.827, 61 layers.
    KimiK2 = "kimi_k2", Some(8), BiasedSigmoid, Some(2.827);
    /// Moonlight: 64 experts, 6 chosen, 27 layers. The scale is the model's.
    Moonlight = "moonlight", Some(6), BiasedSigmoid, None;
    /// Kimi K3: 896 experts, 16 chosen. The scale is the model's.
    KimiK3 = "kimi_k3", Some(16), BiasedSigmoid, None;
    /// GLM-4.5 355B-A32B: 160 experts, 8 chosen, scale 2.5.
    Glm4_5_355bA32b = "glm4_5_355b_a32b", Some(8), BiasedSigmoid, Some(2.5);
    /// GLM-4.5 Air 106B-A12B: 128 experts, 8 chosen, scale 1.
    Glm4_5Air106bA12b = "glm4_5_air_106b_a12b", Some(8), BiasedSigmoid, Some(1.0);
    /// GLM-5: 256 experts, 8 chosen, scale 2.5.
    Glm5 = "glm5", Some(8), BiasedSigmoid, Some(2.5);
    /// MiniMax-M2: 256 experts, 8 chosen, 62 layers.
    MinimaxM2 = "minimax_m2", Some(8), BiasedSigmoid, Some(1.0);
    /// Nemotron 3 Nano: 128 experts, 6 chosen, scale 2.5.
    Nemotron3Nano = "nemotron3_nano", Some(6), BiasedSigmoid, Some(2.5);
    /// Nemotron 3 Super: 512 experts, 22 chosen, scale 5.
    Nemotron3Super = "nemotron3_super", Some(22), BiasedSigmoid, Some(5.0);
    /// Nemotron 3 Ultra: 512 experts, 22 chosen, scale 5.
    Nemotron3Ultra = "nemotron3_ultra", Some(22), BiasedSigmoid, Some(5.0);
    /// DeepSeek-V4 Flash: 256 experts, 6 chosen, scale 1.5. The first 3 layers take forced ids from a table by token id.
    DeepseekV4Flash = "deepseek_v4_flash", Some(6), BiasedSqrtSoftplus, Some(1.5);
    /// DeepSeek-V4 Pro: 384 experts, 6 chosen, scale 2.5. The first 3 layers take forced ids from a table by token id.
    DeepseekV4Pro = "deepseek_v4_pro", Some(6), BiasedSqrtSoftplus, Some(2.5);
    /// The Llama 4 family: 1 chosen, by its sigmoid, not renormalised.
    Llama4 = "llama4", Some(1), PlainSigmoid, Some(1.0);
    /// Llama 4 Scout: 16 experts, 1 chosen.
    Llama4Scout = "llama4_scout", Some(1), PlainSigmoid, Some(1.0);
    /// Llama 4 Maverick: 128 experts, 1 chosen.
    Llama4Maverick = "llama4_maverick", Some(1), PlainSigmoid, Some(1.0);
    /// The Ernie 4.5 family: 64 experts; the members differ in k.
    Ernie4_5 = "ernie4_5", None, FlooredSoftmax, Some(1.0);
    /// Ernie 4.5 21B-A3B: 64 experts, 6 chosen.
    Ernie4_5_21bA3b = "ernie4_5_21b_a3b", Some(6), FlooredSoftmax, Some(1.0);
    /// Ernie 4.5 300B-A47B: 64 experts, 8 chosen.
    Ernie4_5_300bA47b = "ernie4_5_300b_a47b", Some(8), FlooredSoftmax, Some(1.0);
}

impl Preset {
    /// Its identifier: `qwen3_30b_a3b`, …
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The preset of this identifier.
    pub fn from_name(name: &str) -> Option<Preset> {
        Preset::ALL.iter().copied().find(|preset| preset.name() == name)
    }

    pub(super) fn config(self) -> Config {
        let Row { top_k, family, scaling_factor, .. } = self.row();
        let (score, renormalize, needs_selection_bias) = match family {
            Family::Selected => (Score::SoftmaxSelected, Renormalize::None, false),
            Family::PlainSigmoid => (Score::Sigmoid, Renormalize::None, false),
            Family::BiasedSigmoid | Family::GroupedSigmoid => (Score::Sigmoid, Renormalize::AddEps(1e-20), true),
            Family::BiasedSqrtSoftplus => (Score::SqrtSoftplus, Renormalize::AddEps(1e-20), true),
            Family::FlooredSoftmax => (Score::Softmax, Renormalize::Floor(1e-12), true),
        };
        let groups = matches!(family, Family::GroupedSigmoid).then_some(Groups { count: 8, admitted: 4, top: Some(2) });
        Config {
            top_k: None,
            preset_top_k: top_k,
            needs_selection_bias,
            groups,
            renormalize,
            scaling_factor,
            ..Config::new(score, 1)
        }
    }
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
