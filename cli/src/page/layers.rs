//! By layer: how many tokens go elsewhere than recorded, and how evenly experts are loaded.

use super::Figure;
use super::svg::{MARGINS, Margins, Plot, SIZE, labelled, plain_percent, ticks};
use crate::table::{count, number, percent};

/// Columns of the load's map; more experts than that share one.
const COLUMNS: usize = 128;
/// The width of the load's map, which has a row of the page to itself.
const WIDE: f64 = 1140.0;

/// `None` where nothing is compared.
pub fn changed(recordings: &[(&str, Vec<f64>)]) -> Option<Figure> {
    let layers = recordings.iter().map(|(_, shares)| shares.len()).max().filter(|&layers| layers > 0)?;
    let most = recordings.iter().flat_map(|(_, shares)| shares).copied().fold(0.0, f64::max).max(1e-3);
    let top = most * 1.08;
    let margins = Margins { top: 30.0, ..MARGINS };
    let mut plot = Plot::new(SIZE, margins, (-0.5, layers as f64 - 0.5), (0.0, top));
    plot.left_axis(&labelled(ticks((0.0, most), 6), plain_percent), "share of tokens");
    let width = 0.76 / recordings.len() as f64;
    for (index, (name, shares)) in recordings.iter().enumerate() {
        let class = if index == 0 { "first" } else { "second" };
        for (layer, &share) in shares.iter().enumerate() {
            let from = layer as f64 - 0.38 + width * index as f64;
            let title = format!("layer {layer}: {} differ from {name}", percent(share));
            plot.rectangle(class, (from, 0.0), (from + width, share), 1.0, &title);
        }
        let x = margins.left + 170.0 * index as f64;
        plot.legend(class, (x, 8.0), name);
    }
    plot.bottom_axis(&layer_ticks(layers), "layer");
    let title = "Changed routes by layer".to_owned();
    let caption = "Tokens whose set of experts, as the router would choose it now, is not the recorded one. A few per cent is what kernels \
                   and an update do; one layer far above the others, or all near 100 %, is a fault of recording."
        .to_owned();
    Some(Figure { svg: plot.render(&title), title, caption, is_wide: false })
}

/// `None` without a routed token.
pub fn load(load: &[Vec<u64>], whose: &str) -> Option<Figure> {
    let experts = load.iter().map(Vec::len).max().filter(|&experts| experts > 0)?;
    if load.iter().flatten().all(|&n| n == 0) {
        return None;
    }
    let layers = load.len();
    let columns = experts.min(COLUMNS);
    let margins = Margins { right: 64.0, top: 26.0, ..MARGINS };
    let height = (layers as f64 * 24.0).clamp(120.0, 420.0) + margins.top + margins.bottom;
    // Layers from the top down.
    let range = (layers as f64 - 0.5, -0.5);
    let mut plot = Plot::new((WIDE, height), margins, (0.0, columns as f64), range);
    let mut peak = 1.0_f64;
    let relative: Vec<Vec<f64>> = load.iter().map(|counts| relative(counts, columns)).collect();
    relative.iter().flatten().for_each(|&times| peak = peak.max(times));
    let label = |(layer, label): &(f64, String)| (*layer, label.clone());
    let step_labels: Vec<(f64, String)> = layer_ticks(layers).iter().map(label).collect();
    plot.left_labels(&step_labels, "layer");
    for (layer, row) in relative.iter().enumerate() {
        for (column, &times) in row.iter().enumerate() {
            let (from, to) = ((column as f64, layer as f64 - 0.46), (column as f64 + 0.94, layer as f64 + 0.46));
            let title =
                format!("layer {layer}, {}: {} times the mean", named(column, columns, experts), number(times, 3));
            // The square root shows differences among the idle as well as among the busy.
            plot.rectangle("first", from, to, 0.04 + 0.96 * (times / peak).sqrt(), &title);
        }
        let busiest = row.iter().copied().fold(0.0, f64::max);
        if layers <= 24 || layer % layers.div_ceil(24) == 0 {
            let (x, y) = plot.at(columns as f64, layer as f64);
            plot.text("tick", "start", (x + 8.0, y + 4.0), &format!("{busiest:.1}×"));
        }
    }
    plot.text("tick", "end", (WIDE - 6.0, 16.0), "busiest / mean");
    let places = labelled(ticks((0.0, experts as f64 - 1.0), 16), |expert| count(expert as u64));
    let across = columns as f64 / experts as f64;
    let places: Vec<(f64, String)> = places
        .into_iter()
        .filter(|(expert, _)| expert.fract() == 0.0)
        .map(|(e, text)| ((e + 0.5) * across, text))
        .collect();
    plot.bottom_axis(&places, "expert");
    let title = "Load of experts by layer".to_owned();
    let idle = load.iter().flatten().filter(|&&n| n == 0).count();
    let caption = format!(
        "Tokens per expert ({whose}) over their layer's mean, the stronger the more. Even rows are sound; a few strong cells in an empty row \
         say that a few experts do all the work. {} of {} experts have no token in this batch.",
        count(idle as u64),
        count((layers * experts) as u64)
    );
    Some(Figure { svg: plot.render(&title), title, caption, is_wide: true })
}

/// Tokens per expert over the mean, neighbours averaged into columns.
fn relative(counts: &[u64], columns: usize) -> Vec<f64> {
    let experts = counts.len();
    let mean = counts.iter().sum::<u64>() as f64 / experts.max(1) as f64;
    let bounds = |column: usize| column * experts / columns;
    let of = |column: usize| {
        let inside = &counts[bounds(column)..bounds(column + 1)];
        let load = inside.iter().sum::<u64>() as f64 / inside.len().max(1) as f64;
        if mean > 0.0 { load / mean } else { 0.0 }
    };
    (0..columns).map(of).collect()
}

fn named(column: usize, columns: usize, experts: usize) -> String {
    let (first, end) = (column * experts / columns, (column + 1) * experts / columns);
    if end - first == 1 { format!("expert {first}") } else { format!("experts {first} to {}", end - 1) }
}

/// As many layers as can be told apart.
fn layer_ticks(layers: usize) -> Vec<(f64, String)> {
    let step = layers.div_ceil(16);
    (0..layers).step_by(step).map(|layer| (layer as f64, layer.to_string())).collect()
}
