//! Sequences packed into one batch.

use super::experts::RoutedExperts;
use super::parallel::ContextParallel;
use super::payload::ARGUMENT;
use crate::error::{Error, Kind, Result};
use crate::objective::Segments;

/// The routes of a packed batch: the sequences' rows one behind the other, and which row each token takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedRoutes {
    routes: RoutedExperts,
    segments: Segments,
    /// The first row of each sequence, and the number of rows at the end.
    offsets: Vec<usize>,
}

impl PackedRoutes {
    /// Sequences with their numbers of tokens. One of n tokens has n − 1 rows, its last token then being missing, or n.
    ///
    /// # Errors
    /// `Routes` for other numbers of rows, for sequences that differ in layers, k or packing, and for more rows than an i32 can name.
    pub fn new(sequences: &[(&RoutedExperts, usize)]) -> Result<PackedRoutes> {
        let mut offsets = vec![0];
        for (i, (routes, tokens)) in sequences.iter().enumerate() {
            let rows = routes.rows();
            if rows != *tokens && rows + 1 != *tokens {
                let message =
                    format!("sequence {i}: has {rows} rows for {tokens} tokens, needs {}", tokens.max(&1) - 1);
                return Err(Error::invalid(Kind::Routes, ARGUMENT, message));
            }
            offsets.push(offsets[i] + rows);
        }
        if i32::try_from(offsets[sequences.len()]).is_err() {
            let message = format!("{} rows are more than row_index can name", offsets[sequences.len()]);
            return Err(Error::invalid(Kind::Routes, ARGUMENT, message));
        }
        let routes = RoutedExperts::concat(sequences.iter().map(|(routes, _)| *routes))?;
        let segments = Segments::from_lengths(sequences.iter().map(|(_, tokens)| *tokens))?;
        Ok(PackedRoutes { routes, segments, offsets })
    }

    /// All rows.
    pub fn routes(&self) -> &RoutedExperts {
        &self.routes
    }
    /// The tokens of each sequence: `cu_seqlens` of the batch.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// `[N]`: the row of each token, −1 where there is none. What the gate takes as `row_index`.
    pub fn row_index(&self) -> Vec<i32> {
        (0..self.segments.len())
            .flat_map(|i| (0..self.segments.range(i).len()).map(move |token| self.row_of(i, Some(token))))
            .collect()
    }

    /// As [`row_index`](PackedRoutes::row_index), for what one context-parallel rank holds: every sequence padded and divided by itself.
    /// The tape is the same on every rank. Panics if there is no such rank.
    pub fn row_index_of_rank(&self, parallel: ContextParallel, rank: usize) -> Vec<i32> {
        (0..self.segments.len())
            .flat_map(|i| {
                let positions = parallel.positions(self.segments.range(i).len(), rank);
                positions.map(move |token| self.row_of(i, token))
            })
            .collect()
    }

    fn row_of(&self, sequence: usize, token: Option<usize>) -> i32 {
        let rows = self.offsets[sequence]..self.offsets[sequence + 1];
        let row = token.map(|token| rows.start + token).filter(|row| rows.contains(row));
        row.filter(|&row| !self.routes.is_missing(row)).map_or(-1, |row| row as i32)
    }
}
