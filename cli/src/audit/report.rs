//! What an audit prints.

use moerl::correction;
use serde_json::{Value, json};

use super::{Findings, Policies, Routes};
use crate::backend::Chosen;
use crate::page::{Page, Position};
use crate::table::{Table, bar, count, number, percent, profile};

/// Columns of charts.
const CHART: usize = 40;
/// Columns of the load's chart.
const LOAD: usize = 32;

/// Every number and every danger.
pub fn json(backend: &Chosen, findings: &[Findings]) -> Value {
    let files: Vec<Value> = findings.iter().map(file_json).collect();
    json!({"backend": backend.name(), "files": files})
}

fn file_json(findings: &Findings) -> Value {
    let dangers: Vec<Value> = findings
        .dangers
        .iter()
        .map(|danger| {
            json!({
                "verdict": danger.kind.name(),
                "tensor": danger.tensor,
                "statistic": danger.statistic,
                "threshold": danger.threshold,
                "found": danger.found,
                "advice": danger.kind.advice(),
            })
        })
        .collect();
    let positions: Vec<Value> = findings
        .positions
        .iter()
        .map(|bin| {
            json!({"first": bin.first, "last": bin.last, "tokens": bin.tokens, "mean": bin.mean, "p90": bin.ninetieth})
        })
        .collect();
    json!({
        "file": findings.file,
        "counted_tokens": findings.counted,
        "statistics": findings.statistics.to_json(),
        "policies": findings.policies,
        "mismatch_by_position": positions,
        "routes": findings.routes,
        "dangers": dangers,
        "notes": findings.notes,
    })
}

/// For a person.
pub fn text(backend: &Chosen, findings: &[Findings]) -> String {
    let mut text = format!("backend  {}\n", backend.describe());
    for findings in findings {
        text.push('\n');
        text.push_str(&file_text(findings));
    }
    if findings.len() > 1 {
        text.push('\n');
        text.push_str(&summary(findings).render());
    }
    text
}

fn file_text(findings: &Findings) -> String {
    let mut text = format!("{}\n{}\n", crate::failure::one_line(&findings.file), findings.shapes);
    let tables = [numbers(findings), by_position(&findings.positions), by_change(&findings.policies)];
    for table in tables.into_iter().chain(findings.routes.iter().map(by_layer)).filter(|table| !table.is_empty()) {
        text.push('\n');
        text.push_str(&table.render());
    }
    text.push('\n');
    for note in &findings.notes {
        text.push_str(&format!("{note}\n"));
    }
    if findings.dangers.is_empty() {
        text.push_str("no danger found\n");
    }
    for danger in &findings.dangers {
        text.push_str(&format!("DANGER  {}: {} {}\n", danger.kind.name(), danger.tensor, danger.found));
        text.push_str(&format!("        {}\n", danger.kind.advice()));
    }
    text
}

/// The same with charts.
pub fn page(backend: &Chosen, findings: &[Findings]) -> Page {
    let mut page = Page::new("moerl audit");
    page.line(&backend.describe());
    if findings.len() > 1 {
        page.table(&summary(findings));
    }
    for findings in findings {
        page.section(&findings.file).line(&findings.shapes);
        for danger in &findings.dangers {
            let text = format!("{}: {} {}", danger.kind.name(), danger.tensor, danger.found);
            page.danger(&text, danger.kind.advice());
        }
        if findings.dangers.is_empty() {
            page.line("No danger found.");
        }
        page.tiles(&tiles(findings));
        if let Some(charts) = &findings.charts {
            page.charts(charts);
        }
        page.table(&numbers(findings)).table(&by_change(&findings.policies));
        findings.routes.iter().for_each(|routes| {
            page.table(&by_layer(routes));
        });
        findings.notes.iter().for_each(|note| {
            page.line(note);
        });
    }
    page
}

fn tiles(findings: &Findings) -> Vec<(&'static str, String)> {
    let mut tiles = vec![("tokens that count", count(findings.counted))];
    if let Some(kl) = findings.statistics.mismatch_kl {
        tiles.push(("KL rollout to trainer, nats a token", number(kl.k3, 3)));
    }
    if let Some(size) = findings.statistics.sample_size {
        tiles.push(("effective sample size of tokens", percent(size.tokens)));
        tiles.push(("effective sample size of sequences", percent(size.segments)));
    }
    if let Some(changed) = findings.routes.first().and_then(|routes| routes.changed) {
        tiles.push(("expert sets changed", percent(changed)));
    }
    tiles
}

/// One line a file.
fn summary(findings: &[Findings]) -> Table {
    let mut table = Table::new(&[
        "file",
        ">tokens",
        ">mismatch k3",
        ">sample, tokens",
        ">sample, sequences",
        ">sets changed",
        "dangers",
    ]);
    for findings in findings {
        let size = findings.statistics.sample_size;
        let changed = findings.routes.first().and_then(|routes| routes.changed);
        let dangers: Vec<&str> = findings.dangers.iter().map(|danger| danger.kind.name()).collect();
        table.row([
            crate::failure::one_line(&findings.file),
            count(findings.counted),
            findings.statistics.mismatch_kl.map(|kl| number(kl.k3, 3)).unwrap_or_default(),
            size.map(|size| percent(size.tokens)).unwrap_or_default(),
            size.map(|size| percent(size.segments)).unwrap_or_default(),
            changed.map(percent).unwrap_or_default(),
            if dangers.is_empty() { "none".into() } else { dangers.join(", ") },
        ]);
    }
    table
}

fn numbers(findings: &Findings) -> Table {
    let mut table = Table::new(&["result", "value"]);
    let statistics = &findings.statistics;
    for (name, kl) in
        [("KL rollout to trainer", statistics.mismatch_kl), ("KL current to reference", statistics.reference_kl)]
    {
        if let Some(kl) = kl {
            table.row([name, &format!("{} nats a token (k3), {} (k1)", number(kl.k3, 3), number(kl.k1, 3))]);
        }
    }
    if let Some(mismatch) = &findings.policies.mismatch {
        mismatch_rows(&mut table, mismatch);
    }
    if let Some(size) = statistics.sample_size {
        let (tokens, segments) = (percent(size.tokens), percent(size.segments));
        let words = format!("{tokens} of tokens, {segments} of sequences (trainer / rollout)");
        table.row(["effective sample size", &words]);
    }
    if let Some(found) = &findings.policies.ratio {
        if let Some((k1, k3)) = found.policy_kl_k1.zip(found.policy_kl_k3) {
            let words = format!("{} nats a token (k3), {} (k1)", number(k3, 3), number(k1, 3));
            table.row(["KL old to current", &words]);
        }
        for (name, spread) in [("ratio by token", found.ratio), ("ratio by sequence", found.sequence_ratio)] {
            if let Some(spread) = spread {
                let [low, high, mean] = [spread.min, spread.max, spread.mean].map(|ratio| number(ratio, 5));
                table.row([name, &format!("{low} to {high}, mean {mean}")]);
            }
        }
    }
    for routes in &findings.routes {
        routes_rows(&mut table, routes);
    }
    table
}

fn mismatch_rows(table: &mut Table, found: &correction::Diagnostics) {
    if let Some(weight) = found.weight {
        let [low, high, mean] = [weight.min, weight.max, weight.mean].map(|weight| number(weight, 4));
        table.row(["trainer / rollout by token", &format!("{low} to {high}, mean {mean}")]);
    }
    if let Some((old, rollout)) = found.ppl_old.zip(found.ppl_rollout) {
        table.row(["perplexity", &format!("{} trainer, {} rollout", number(old, 5), number(rollout, 5))]);
    }
    let chi2 = [("token", found.chi2_token), ("sequence", found.chi2_seq), ("geometric", found.chi2_geo)];
    let chi2: Vec<String> =
        chi2.iter().filter_map(|(level, value)| Some(format!("{} {level}", number((*value)?, 3)))).collect();
    if !chi2.is_empty() {
        table.row(["chi-squared", &chi2.join(", ")]);
    }
    let far = found.catastrophic_tokens;
    if far > 0 {
        let words = format!("{} with a ratio below 1e-4 or above 1e4", count(far));
        table.row(["tokens far apart", &words]);
    }
}

fn routes_rows(table: &mut Table, routes: &Routes) {
    if let Some((pairs, tokens)) = routes.changed.zip(routes.changed_tokens) {
        let words = format!("{} of (token, layer) sets, {} of tokens", percent(pairs), percent(tokens));
        table.row([format!("changed from {}", routes.tensor), words]);
    }
    let by = |[before, own, after]: [Option<f64>; 3]| {
        own.map(|own| {
            let [before, after] = [before, after].map(|share| share.map_or_else(|| "none".into(), percent));
            format!("{} (before {before}, after {after})", percent(own))
        })
    };
    if let Some(words) = by(routes.overlap_by_token) {
        table.row([format!("{} in today's choice, token", routes.tensor), words]);
    }
    if let Some(words) = by(routes.overlap_by_layer) {
        table.row([format!("{} in today's choice, layer", routes.tensor), words]);
    }
}

fn by_position(positions: &[Position]) -> Table {
    let most = positions.iter().map(|bin| bin.mean).fold(0.0, f64::max);
    let mut table = Table::new(&[">position", ">tokens", ">|trainer - rollout|", ">one in ten above", "|"]);
    for bin in positions {
        table.row([
            format!("{} to {}", count(bin.first as u64), count(bin.last as u64)),
            count(bin.tokens as u64),
            number(bin.mean, 3),
            number(bin.ninetieth, 3),
            bar(bin.mean, most, CHART),
        ]);
    }
    table
}

fn by_change(policies: &Policies) -> Table {
    let mut table = Table::new(&[">layers changed", ">tokens", ">|current - old|", ">trainer - rollout", "|"]);
    let most = policies.by_route_change.iter().filter_map(|bin| bin.moved).fold(0.0, f64::max);
    for (sixteenths, bin) in policies.by_route_change.iter().enumerate().filter(|(_, bin)| bin.tokens > 0) {
        let share = percent(sixteenths as f64 / 16.0);
        let moved = bin.moved.unwrap_or_default();
        table.row([
            if sixteenths == 15 { format!("{share} or more") } else { share },
            count(bin.tokens),
            number(moved, 3),
            bin.mismatch.map(|mean| number(mean, 3)).unwrap_or_default(),
            bar(moved, most, CHART),
        ]);
    }
    table
}

fn by_layer(routes: &Routes) -> Table {
    let name = format!("{}, layer", routes.tensor);
    let mut table = Table::new(&[
        &format!(">{name}"),
        ">changed",
        ">overlap",
        ">mass",
        ">margin",
        ">deficit",
        ">not recorded",
        ">zeros",
        ">bad",
        ">max/mean",
        ">cv",
        "|load",
    ]);
    let some = |n: u64| if n > 0 { count(n) } else { String::new() };
    let digits = |value: Option<f64>| value.map(|value| number(value, 3)).unwrap_or_default();
    for (index, layer) in routes.layers.iter().enumerate() {
        table.row([
            index.to_string(),
            layer.changed.map(percent).unwrap_or_default(),
            layer.overlap.map(percent).unwrap_or_default(),
            layer.forced_mass.map(percent).unwrap_or_default(),
            digits(layer.margin),
            digits(layer.deficit),
            some(layer.rows.missing),
            some(layer.rows.zeros),
            some(layer.rows.partial + layer.rows.duplicates + layer.rows.out_of_range),
            digits(layer.load_max_over_mean),
            digits(layer.load_cv),
            profile(&layer.load, LOAD),
        ]);
    }
    table
}
