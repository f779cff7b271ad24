//! The table that `moerl step` prints.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Stage, Statistics};
use crate::table::{Table, bar, count, difference, duration, number, percent};

/// What the table says beside the stages and the statistics.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What ran, on what, with which settings: a name and a text each.
    pub facts: Vec<(&'static str, String)>,
    /// The stages in the order they ran.
    pub stages: Vec<Stage>,
    /// The loss.
    pub loss: f64,
    /// Shares of the objective that were clipped, 0 to 1: what is counted, and the share.
    pub clipped: Vec<(&'static str, f64)>,
    /// Divergences, ratios, sample sizes.
    pub statistics: Statistics,
    /// Euclidean norms of gradients: of what, and the norm.
    pub norms: Vec<(&'static str, f64)>,
    /// Per layer, the share of tokens whose native expert set differs from the recorded one, 0 to 1.
    pub changed: Option<Changed>,
    /// Remarks at the end.
    pub notes: Vec<String>,
    /// Whether the stages were compared with the reference.
    pub compared: bool,
}

/// How the native choice of experts differs from the recorded one.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// Whose record: `rollout` or `old`.
    pub recorded: &'static str,
    /// Per layer, the share of the N rows whose set differs.
    pub by_layer: Vec<f64>,
    /// The share of rows with at least one such layer.
    pub any_layer: f64,
}

impl Changed {
    /// The share of all (token, layer) pairs.
    pub fn share(&self) -> f64 {
        self.by_layer.iter().sum::<f64>() / self.by_layer.len().max(1) as f64
    }
}

impl Report {
    /// The text.
    pub fn render(&self) -> String {
        let mut facts = Table::new(&["", ""]);
        for (name, text) in &self.facts {
            facts.row([*name, text.as_str()]);
        }
        let mut text = format!("{}\n{}\n{}", facts.render(), self.stage_table().render(), self.result_table().render());
        if let Some(changed) = &self.changed {
            text.push_str(&format!("\n{}", layer_chart(changed)));
        }
        if !self.notes.is_empty() {
            text.push_str(&format!("\n{}\n", self.notes.join("\n")));
        }
        text
    }

    fn stage_table(&self) -> Table {
        let mut table = Table::new(&["stage", ">rows", ">time", "largest difference from the reference"]);
        for stage in &self.stages {
            let rows = stage.rows_that_differ.iter().map(|&(name, rows)| match rows {
                0 => format!("{name} equal"),
                rows => format!("{name} differ in {} rows", count(rows as u64)),
            });
            let numbers = stage.differences.iter().map(|(name, by)| format!("{name} {}", difference(*by)));
            let differences: Vec<String> = rows.chain(numbers).collect();
            let rows = count(stage.rows as u64);
            table.row([stage.name.clone(), rows, duration(stage.clock.spent), differences.join(" · ")]);
        }
        if self.stages.len() > 1 {
            let all: Duration = self.stages.iter().map(|stage| stage.clock.spent).sum();
            table.row(["all", "", &duration(all)]);
        }
        table
    }

    fn result_table(&self) -> Table {
        let s = &self.statistics;
        let mut table = Table::new(&["result", "value"]);
        table.row(["loss", &number(self.loss, 6)]);
        for (what, share) in &self.clipped {
            table.row([format!("clipped share of {what}"), percent(*share)]);
        }
        if let Some(range) = s.sequence_ratio {
            table.row(["ratio by sequence", &format!("{} to {}", number(range.min, 5), number(range.max, 5))]);
        }
        if let Some(range) = s.ratio {
            table.row(["ratio by token", &format!("{} to {}", number(range.min, 4), number(range.max, 4))]);
        }
        for (name, kl) in [
            ("KL old to current", s.policy_kl),
            ("KL current to reference policy", s.reference_kl),
            ("KL rollout to trainer", s.mismatch_kl),
        ] {
            if let Some(kl) = kl {
                table.row([name, &format!("{} nats a token (k3), {} (k1)", number(kl.k3, 3), number(kl.k1, 3))]);
            }
        }
        if let Some(size) = s.sample_size {
            let (tokens, segments) = (percent(size.tokens), percent(size.segments));
            table.row([
                "effective sample size",
                &format!("{tokens} of tokens, {segments} of sequences (rollout mismatch)"),
            ]);
        }
        if let Some(changed) = &self.changed {
            let (share, any) = (percent(changed.share()), percent(changed.any_layer));
            table.row(["expert sets changed", &format!("{share} of (token, layer) pairs, {any} of tokens")]);
        }
        for (what, norm) in &self.norms {
            table.row([format!("norm of {what}"), number(*norm, 5)]);
        }
        table
    }

    /// Every number as JSON.
    pub fn diagnostics(&self) -> Value {
        let mut all = Map::new();
        for (name, text) in &self.facts {
            all.insert((*name).into(), json!(text));
        }
        all.insert("loss".into(), json!(self.loss));
        let clipped: Map<String, Value> =
            self.clipped.iter().map(|(what, share)| ((*what).to_owned(), json!(share))).collect();
        all.insert("clip_fraction".into(), Value::Object(clipped));
        if let Value::Object(statistics) = self.statistics.to_json() {
            all.extend(statistics);
        }
        let norms: Map<String, Value> =
            self.norms.iter().map(|(what, norm)| ((*what).to_owned(), json!(norm))).collect();
        all.insert("norms".into(), Value::Object(norms));
        if let Some(changed) = &self.changed {
            all.insert(
                "routes_changed".into(),
                json!({
                    "recorded": changed.recorded,
                    "share": changed.share(),
                    "any_layer": changed.any_layer,
                    "by_layer": changed.by_layer,
                }),
            );
        }
        Value::Object(all)
    }
}

/// One bar per layer.
fn layer_chart(changed: &Changed) -> String {
    let most = changed.by_layer.iter().copied().fold(0.0, f64::max);
    let mut table = Table::new(&[">layer", ">changed", ""]);
    for (layer, &share) in changed.by_layer.iter().enumerate() {
        table.row([layer.to_string(), percent(share), bar(share, most, 40)]);
    }
    format!("tokens whose expert set differs from {}'s\n{}", changed.recorded, table.render())
}
