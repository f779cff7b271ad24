//! The table that `moerl step` prints.

use std::time::Duration;

use moerl::diagnostics::{ClipFraction, Diagnostics, Spread};
use moerl::objective::{Anchor, Segments};
use serde_json::{Map, Value, json};

use super::{Inputs, Stage, Statistics, Update, gate, objective, plan};
use crate::page::{Charts, Page, Routing};
use crate::stepfile::{AdvantageSource, PolicySource, StepFile};
use crate::table::{Table, bar, count, difference, duration, number, percent};

/// What a step came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What ran, on what, with which settings: a name and a text each.
    pub facts: Vec<(&'static str, String)>,
    /// The stages in the order they ran.
    pub stages: Vec<Stage>,
    /// The last one.
    pub backward: Option<Stage>,
    /// The loss.
    pub loss: f64,
    /// The mean over groups of their mean reward under the current policy, where the objective estimates it.
    pub expected_reward: Option<f64>,
    /// The objective's own statistics.
    pub objective: Option<Diagnostics>,
    /// The reference's loss and statistics, from the same inputs.
    pub exact: Option<(f64, Diagnostics)>,
    /// Divergences and sample sizes of the other policies.
    pub statistics: Statistics,
    /// Euclidean norms of gradients: of what, and the norm.
    pub norms: Vec<(&'static str, f64)>,
    /// Native against recorded experts.
    pub changed: Option<Changed>,
    /// By layer and expert, tokens.
    pub load: Vec<Vec<u64>>,
    /// For the page, if there is to be one.
    pub charts: Option<Charts>,
    /// Remarks at the end.
    pub notes: Vec<String>,
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
    /// A report without results yet.
    pub(super) fn new(update: &Update<'_>, plan: &plan::Plan, router: Option<&gate::Plan>) -> Report {
        let mut report = Report::default();
        report.facts.push(("backend", update.backend.clone()));
        report.facts.push(("input", shapes(update.file)));
        report.facts.push(("objective", plan.words.clone()));
        let source = match update.file.advantage() {
            _ if plan.from_rewards => plan.advantage.words(),
            Some(AdvantageSource::PerToken(_)) => "per token, from the file".to_owned(),
            Some(AdvantageSource::PerSegment(_)) => "per sequence, from the file".to_owned(),
            _ => plan.advantage.words(),
        };
        report.facts.push(("advantage", source));
        match (update.file.router, router) {
            (Some((layers, experts)), Some(router)) => {
                let words = format!("{layers} layers, {} of {experts} experts, {}", router.top_k, router.words);
                report.facts.push(("gate", words));
            }
            _ => report.notes.push("no router_logits in the file: no gate, no replay".into()),
        }
        report.notes.extend(plan.warnings.iter().map(|warning| format!("unusual: {warning}")));
        if update.options.verbose {
            report.notes.extend(update.file.ignored().into_iter().map(|tensor| format!("ignored: {tensor}")));
        }
        report
    }

    /// Takes in what the gate came to.
    pub(super) fn gated(&mut self, gated: gate::Gated) {
        self.stages.extend(gated.stages);
        self.changed = gated.changed;
        self.load = gated.load;
        self.norms.extend(gated.norms);
    }

    /// Takes in what the objective came to.
    pub(super) fn computed(&mut self, computed: objective::Computed, plan: &plan::Plan) {
        self.stages.push(computed.stage);
        self.stages.extend(self.backward.take());
        self.loss = computed.found.loss;
        self.objective = Some(computed.found.diagnostics);
        self.exact = computed.exact;
        if !computed.has_anchor {
            self.notes.push("no old_logprobs in the file: the first on-policy step, every ratio is 1".into());
        } else if plan.config.anchor == Anchor::Rollout {
            self.notes.push("ratios are taken against the rollout engine's log-probabilities".into());
        }
        let allowed: usize = self.stages.iter().map(|stage| stage.findings).sum();
        if allowed > 0 {
            self.notes
                .push("numbers at counted tokens that are not finite were found, and allowed by --nonfinite".into());
        }
    }

    /// The charts that the page shows.
    pub(super) fn draw(&mut self, inputs: &Inputs<'_>, plan: &plan::Plan) {
        let recording = |changed: &Changed| (format!("routes_{}", changed.recorded), changed.by_layer.clone());
        let changed: Vec<(String, Vec<f64>)> = self.changed.iter().map(recording).collect();
        let changed: Vec<(&str, Vec<f64>)> =
            changed.iter().map(|(name, shares)| (name.as_str(), shares.clone())).collect();
        let loaded = "as the gate sent them";
        self.charts = Some(Charts::of(inputs, plan.window(), &Routing { changed: &changed, load: &self.load, loaded }));
    }

    /// The table and the charts as a page about a file.
    pub fn page(&self, file: &str) -> Page {
        let mut page = Page::new("moerl step");
        page.line(&crate::failure::one_line(file));
        let mut tiles = vec![("loss", number(self.loss, 5))];
        if let Some(found) = &self.objective {
            let clipped = [
                ("tokens clipped", found.clip_fraction.map(|clipped| percent(clipped.any))),
                ("sequences clipped", found.sequence_clip_fraction.map(|clipped| percent(clipped.any))),
                ("KL old to current, nats a token", found.policy_kl_k3.map(|kl| number(kl, 3))),
            ];
            tiles.extend(clipped.into_iter().filter_map(|(name, value)| Some((name, value?))));
        }
        if let Some(size) = self.statistics.sample_size {
            tiles.push(("effective sample size of tokens", percent(size.tokens)));
        }
        if let Some(changed) = &self.changed {
            tiles.push(("expert sets changed", percent(changed.share())));
        }
        page.tiles(&tiles);
        if let Some(charts) = &self.charts {
            page.charts(charts);
        }
        let mut facts = Table::new(&["", ""]);
        self.facts.iter().for_each(|(name, text)| {
            facts.row([*name, text.as_str()]);
        });
        page.section("Settings").table(&facts);
        page.section("Results").table(&self.result_table());
        page.section("Stages").table(&self.stage_table());
        self.notes.iter().for_each(|note| {
            page.line(note);
        });
        page
    }

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
        if self.exact.is_some() {
            text.push_str("\ndifferences: each stage against the f64 reference on the same inputs\n");
        }
        for note in &self.notes {
            text.push_str(&format!("\n{note}"));
        }
        if !self.notes.is_empty() {
            text.push('\n');
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
        let all: Duration = self.stages.iter().map(|stage| stage.clock.spent).sum();
        table.row(["all", "", &duration(all)]);
        table
    }

    fn result_table(&self) -> Table {
        let mut table = Table::new(&["result", "value", ">difference"]);
        let exact = self.exact.as_ref();
        let apart = |found: f64, exact: Option<f64>| exact.map(|e| difference((found - e).abs())).unwrap_or_default();
        table.row(["loss".into(), number(self.loss, 6), apart(self.loss, exact.map(|(loss, _)| *loss))]);
        if let Some(expected) = self.expected_reward {
            table.row(["estimated mean reward", &number(expected, 6)]);
        }
        if let Some(found) = &self.objective {
            let exact = exact.map(|(_, diagnostics)| diagnostics);
            clipped(&mut table, "tokens", found.clip_fraction, exact.and_then(|e| e.clip_fraction));
            clipped(
                &mut table,
                "sequences",
                found.sequence_clip_fraction,
                exact.and_then(|e| e.sequence_clip_fraction),
            );
            spread(&mut table, "sequence", found.sequence_ratio, exact.and_then(|e| e.sequence_ratio));
            spread(&mut table, "token", found.ratio, exact.and_then(|e| e.ratio));
            if let Some((k1, k3)) = found.policy_kl_k1.zip(found.policy_kl_k3) {
                let value = format!("{} nats a token (k3), {} (k1)", number(k3, 3), number(k1, 3));
                table.row(["KL old to current".into(), value, apart(k3, exact.and_then(|e| e.policy_kl_k3))]);
            }
        }
        let s = &self.statistics;
        for (name, kl) in [("KL current to reference", s.reference_kl), ("KL rollout to trainer", s.mismatch_kl)] {
            if let Some(kl) = kl {
                table.row([name, &format!("{} nats a token (k3), {} (k1)", number(kl.k3, 3), number(kl.k1, 3))]);
            }
        }
        if let Some(size) = s.sample_size {
            let (tokens, segments) = (percent(size.tokens), percent(size.segments));
            table.row([
                "effective sample size",
                &format!("{tokens} of tokens, {segments} of sequences (trainer / rollout)"),
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
        if let Some(expected) = self.expected_reward {
            all.insert("expected_reward".into(), json!(expected));
        }
        all.insert("objective_diagnostics".into(), json!(self.objective));
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

/// Tokens, segments and what the policy comes from.
pub fn shapes(file: &StepFile) -> String {
    let counted = file.loss_mask().iter().filter(|&&m| m != 0).count();
    let longest = Segments::from_offsets(&file.offsets).map_or(0, |segments| segments.longest());
    let policy = match file.policy() {
        Some(PolicySource::Logits(logits)) => format!("{} {}", logits.name, logits.describe()),
        _ => "log-probabilities only".into(),
    };
    let (tokens, segments) = (count(file.tokens as u64), count(file.segments as u64));
    format!("{tokens} tokens, {} counted, in {segments} sequences (longest {longest}); {policy}", count(counted as u64))
}

fn clipped(table: &mut Table, what: &str, found: Option<ClipFraction>, exact: Option<ClipFraction>) {
    let Some(found) = found else { return };
    let capped = if found.capped > 0.0 { format!(", {} at the cap", percent(found.capped)) } else { String::new() };
    let value = format!("{} ({} high, {} low{capped})", percent(found.any), percent(found.high), percent(found.low));
    let apart = exact.map(|exact| difference((found.any - exact.any).abs())).unwrap_or_default();
    table.row([format!("clipped share of {what}"), value, apart]);
}

fn spread(table: &mut Table, what: &str, found: Option<Spread>, exact: Option<Spread>) {
    let Some(found) = found else { return };
    let value = format!("{} to {}, mean {}", number(found.min, 5), number(found.max, 5), number(found.mean, 5));
    let apart = exact.map(|exact| difference((found.min - exact.min).abs().max((found.max - exact.max).abs())));
    table.row([format!("ratio by {what}"), value, apart.unwrap_or_default()]);
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
