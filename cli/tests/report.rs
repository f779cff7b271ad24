//! `--report`: one page that is well formed, fetches nothing, runs nothing, and has a chart of everything that the data allow.

mod common;

use common::{Draft, Folder, data, moerl, process, small};

const CHARTS: [&str; 5] = [
    "Ratio of current to old policy",
    "Old against current log-probability",
    "Mismatch by position",
    "Changed routes by layer",
    "Load of experts by layer",
];

/// The page that a command writes.
fn page(draft: &Draft, command: &str, more: &[&str]) -> String {
    let folder = Folder::new();
    let path = folder.write("a <b> & \"c\".safetensors", &draft.bytes());
    let pages = folder.path("new/folder");
    let arguments = [command, "--backend", "reference", "--report", pages.to_str().unwrap(), path.to_str().unwrap()];
    moerl(&[&arguments[..], more].concat()).unwrap();
    let html = std::fs::read_to_string(pages.join(format!("{command}.html"))).unwrap();
    assert_eq!(std::fs::read_dir(&pages).unwrap().count(), 1);
    assert_well_formed(&html);
    html
}

/// Every element is closed in the order of opening, attributes are quoted, and no `<` or `&` stands alone.
fn assert_well_formed(html: &str) {
    let body = html.strip_prefix("<!DOCTYPE html>\n").expect("a document type");
    let mut open: Vec<&str> = Vec::new();
    let mut rest = body;
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        let in_style = open.last() == Some(&"style");
        for entity in text.split('&').skip(1).filter(|_| !in_style) {
            assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)), "&{entity:.20}");
        }
        let end = tag.find('>').expect("a tag that ends");
        let inside = &tag[1..end];
        assert!(!inside.contains('<'), "{inside}");
        assert_eq!(inside.matches('"').count() % 2, 0, "{inside}");
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !inside.ends_with('/') {
            open.push(inside.split(' ').next().unwrap());
        }
        rest = &tag[end + 1..];
    }
    assert_eq!(open, Vec::<&str>::new());
    assert_eq!(rest.trim(), "");
}

fn assert_self_contained(html: &str) {
    let namespace = "xmlns=\"http://www.w3.org/2000/svg\"";
    let without = html.replace(namespace, "");
    for reference in [
        "http:",
        "https:",
        "//",
        "<script",
        "javascript",
        "onload",
        "onclick",
        "<link",
        "<img",
        "@import",
        "url(",
        "src=",
        "href=",
    ] {
        assert!(!without.contains(reference), "{reference}");
    }
    assert!(html.contains("prefers-color-scheme: dark"));
    assert!(!html.contains("NaN") && !html.contains("inf\""), "a coordinate that is no number");
}

fn charts(html: &str) -> Vec<&'static str> {
    let is_there = |title: &&&str| html.contains(&format!("<h3>{title}</h3>\n<svg "));
    CHARTS.iter().filter(is_there).copied().collect()
}

#[test]
fn a_step_and_an_audit_of_the_shipped_file_have_every_chart() {
    let draft = Draft::of(&data("step.safetensors"));
    for (command, needles) in
        [("step", ["-0.050945", "85.18 %", "window"]), ("audit", ["No danger found", "95.44 %", "routes_old"])]
    {
        let html = page(&draft, command, &[]);
        assert_self_contained(&html);
        assert_eq!(charts(&html), CHARTS);
        assert_eq!(html.matches("<figure").count(), html.matches("<figcaption>").count());
        assert_eq!(html.matches("<svg ").count(), 5);
        for axis in ["share of tokens", "(nats)", "position in the response", ">layer<", ">expert<", "(logarithmic)"] {
            assert!(html.contains(axis), "{axis}");
        }
        for needle in needles {
            assert!(html.contains(needle), "{needle}");
        }
        // The bars of the histogram are all of the counted tokens.
        let counted: usize = html
            .lines()
            .filter(|line| {
                line.starts_with("<rect class=\"first\"")
                    && line.contains(" to ")
                    && line.ends_with("tokens</title></rect>")
            })
            .map(|line| line.rsplit(": ").next().unwrap().split(' ').next().unwrap().parse::<usize>().unwrap())
            .sum();
        assert_eq!(counted, 776);
    }
}

#[test]
fn what_the_data_do_not_have_is_left_out() {
    let mut draft = small();
    for command in ["step", "audit"] {
        assert_eq!(charts(&page(&draft, command, &[])), CHARTS);
    }
    draft.remove("rollout_logprobs");
    assert!(!charts(&page(&draft, "audit", &[])).contains(&CHARTS[2]));
    draft.remove("old_logprobs").remove("router_logits").remove("routes_rollout");
    for command in ["step", "audit"] {
        assert_eq!(charts(&page(&draft, command, &[])), Vec::<&str>::new());
    }
    let mut draft = small();
    draft.set("loss_mask", &[6], &[0_u8; 6]);
    assert_self_contained(&page(&draft, "step", &[]));
    assert_self_contained(&page(&draft, "audit", &[]));
    let mut draft = Draft { tensors: Vec::new() };
    draft.set::<i32>("tokens", &[0], &[]).set("cu_seqlens", &[1], &[0_i32]).set::<f32>("logprobs", &[0], &[]);
    draft.set::<f32>("advantage", &[0], &[]).set::<f32>("old_logprobs", &[0], &[]);
    assert_self_contained(&page(&draft, "step", &[]));
}

#[test]
fn numbers_that_are_not_finite_leave_the_charts_whole() {
    let mut draft = small();
    draft.poke("logits", 5 + 3, f32::NAN).poke("old_logprobs", 4, f32::NEG_INFINITY).poke(
        "rollout_logprobs",
        3,
        f32::INFINITY,
    );
    let html = page(&draft, "audit", &[]);
    assert!(html.contains("non-finite values at counted tokens"));
    let svg: String = html.split("<svg ").skip(1).map(|chart| chart.split("</svg>").next().unwrap()).collect();
    assert!(svg.contains("points") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    let html = page(&draft, "step", &["--nonfinite", "zero-weight"]);
    let svg: String = html.split("<svg ").skip(1).map(|chart| chart.split("</svg>").next().unwrap()).collect();
    assert!(svg.contains("points") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn every_window_is_drawn() {
    let windows =
        ["gspo", "grpo --clip-low 2", "gmpo", "minirl", "cispo --cispo-cap raw:2", "cispo --cispo-cap window:0.2,0.2"];
    for objective in windows {
        let arguments: Vec<&str> = ["--objective"].into_iter().chain(objective.split(' ')).collect();
        let html = page(&small(), "step", &arguments);
        assert!(html.contains("<rect class=\"window\""), "{objective}");
    }
    assert!(!page(&small(), "step", &["--objective", "sapo"]).contains("<rect class=\"window\""));
}

#[test]
fn a_folder_that_cannot_be_made_is_a_failure() {
    let folder = Folder::new();
    let path = folder.write("x.safetensors", &small().bytes());
    let path = path.to_str().unwrap();
    let output = process(&["step", "--backend", "reference", "--report", &format!("{path}/under"), path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot be written"));
}
