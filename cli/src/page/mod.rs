//! One self-contained page: tables and charts as inline SVG, light and dark by the reader's preference; no script, nothing fetched.
//!
//! Charts carry classes instead of colours, so that the style sheet alone knows both palettes.

mod density;
mod layers;
mod position;
mod ratio;
mod svg;

use std::fmt::Write;
use std::path::{Path, PathBuf};

pub use position::{Position, positions};
pub use ratio::Window;

use crate::failure::{Failure, Result, one_line};
use crate::step::Inputs;
use crate::table::Table;
use svg::escaped;

const STYLE: &str = include_str!("style.css");

/// A page under construction.
#[derive(Clone, Debug, Default)]
pub struct Page {
    body: String,
    title: String,
}

/// The charts of one update.
#[derive(Clone, Debug, Default)]
pub struct Charts {
    figures: Vec<Figure>,
}

/// A chart and what a person should see in it.
#[derive(Clone, Debug)]
struct Figure {
    title: String,
    caption: String,
    svg: String,
    /// True for one that has a row to itself.
    is_wide: bool,
}

/// How the experts of a recording are used.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// By recording: its name, and by layer the share of tokens whose set is not the gate's own choice.
    pub changed: &'a [(&'a str, Vec<f64>)],
    /// By layer and expert: tokens.
    pub load: &'a [Vec<u64>],
    /// Whose experts those are.
    pub loaded: &'a str,
}

impl Charts {
    /// Those that the data allow: ratios, old against current log-probability, mismatch by position, changed routes and load by layer.
    pub fn of(inputs: &Inputs<'_>, window: Option<Window>, routing: &Routing<'_>) -> Charts {
        let figures = [
            ratio::figure(inputs, window),
            density::figure(inputs),
            position::figure(&positions(inputs)),
            layers::changed(routing.changed),
            layers::load(routing.load, routing.loaded),
        ];
        Charts { figures: figures.into_iter().flatten().collect() }
    }
}

impl Page {
    /// A page with this heading.
    pub fn new(title: &str) -> Page {
        Page { title: title.to_owned(), body: format!("<h1>{}</h1>\n", escaped(title)) }
    }

    /// A heading.
    pub fn section(&mut self, title: &str) -> &mut Page {
        self.add(format!("<h2>{}</h2>\n", escaped(&one_line(title))))
    }

    /// A line of text.
    pub fn line(&mut self, text: &str) -> &mut Page {
        self.add(format!("<p>{}</p>\n", escaped(text)))
    }

    /// A line that warns, and one that says what to do.
    pub fn danger(&mut self, text: &str, advice: &str) -> &mut Page {
        let (text, advice) = (escaped(text), escaped(advice));
        self.add(format!("<div class=\"danger\"><p><strong>{text}</strong></p><p>{advice}</p></div>\n"))
    }

    /// Numbers in large type: what each is, and the number.
    pub fn tiles(&mut self, tiles: &[(&str, String)]) -> &mut Page {
        let tile = |(name, value): &(&str, String)| {
            format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escaped(value), escaped(name))
        };
        let tiles: String = tiles.iter().map(tile).collect();
        self.add(format!("<div class=\"tiles\">\n{tiles}</div>\n"))
    }

    /// A table; nothing without rows.
    pub fn table(&mut self, table: &Table) -> &mut Page {
        if table.is_empty() {
            return self;
        }
        let cell = |tag: &str, text: &str, is_number: bool| {
            let class = if is_number { " class=\"number\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escaped(text))
        };
        let row = |tag: &str, cells: Vec<(&str, bool)>| {
            let cells: String = cells.into_iter().map(|(text, is_number)| cell(tag, text, is_number)).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let mut text = String::from("<div class=\"table\"><table>\n");
        if table.has_heading() {
            text += &row("th", table.columns());
        }
        (0..table.len()).for_each(|index| text += &row("td", table.cells(index)));
        self.add(text + "</table></div>\n")
    }

    /// Charts side by side.
    pub fn charts(&mut self, charts: &Charts) -> &mut Page {
        let figure = |figure: &Figure| {
            let class = if figure.is_wide { " class=\"wide\"" } else { "" };
            format!(
                "<figure{class}>\n<h3>{}</h3>\n{}<figcaption>{}</figcaption>\n</figure>\n",
                escaped(&figure.title),
                figure.svg,
                escaped(&figure.caption)
            )
        };
        let figures: String = charts.figures.iter().map(figure).collect();
        self.add(format!("<div class=\"figures\">\n{figures}</div>\n"))
    }

    fn add(&mut self, html: String) -> &mut Page {
        self.body += &html;
        self
    }

    /// The document. Every element is closed, so that readers of XML take it as well.
    pub fn render(&self) -> String {
        let mut html = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n");
        // Writing to a string cannot fail.
        let _ = write!(
            html,
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
             <body>\n<main>\n{}</main>\n</body>\n</html>\n",
            escaped(&self.title),
            self.body
        );
        html
    }

    /// Writes the document to a file in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`Failure::Run`] if it cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        let path = folder.join(name);
        let failed = |error: std::io::Error| Failure::run(format!("{}: cannot be written: {error}", path.display()));
        std::fs::create_dir_all(folder).map_err(failed)?;
        std::fs::write(&path, self.render()).map_err(failed)?;
        Ok(path)
    }
}
