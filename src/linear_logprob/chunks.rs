//! Which rows are projected together.

use std::ops::Range;

/// Consecutive rows of a call, and where in a chunk they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) at: usize,
    pub(crate) rows: Range<usize>,
}

impl Piece {
    /// Its place in the chunk.
    pub(crate) fn place(&self) -> Range<usize> {
        self.at..self.at + self.rows.len()
    }
}

/// The chunks of a call of `rows` rows, `chunk_rows` at a time; of those in `needed` alone, where it is given. Their pieces lie one behind the other.
pub(crate) fn chunks(rows: usize, needed: Option<&[Range<usize>]>, chunk_rows: usize) -> Vec<Vec<Piece>> {
    let all = 0..rows;
    let mut chunks: Vec<Vec<Piece>> = Vec::new();
    let mut filled = chunk_rows;
    for range in needed.unwrap_or(std::slice::from_ref(&all)) {
        let mut start = range.start;
        while start < range.end {
            if filled == chunk_rows {
                chunks.push(Vec::new());
                filled = 0;
            }
            let end = range.end.min(start + (chunk_rows - filled));
            let chunk = chunks.last_mut().expect("one was begun");
            chunk.push(Piece { at: filled, rows: start..end });
            filled += end - start;
            start = end;
        }
    }
    chunks
}

/// The rows that no chunk has.
pub(crate) fn absent(rows: usize, needed: Option<&[Range<usize>]>) -> Vec<Range<usize>> {
    let Some(needed) = needed else { return Vec::new() };
    let starts = std::iter::once(0).chain(needed.iter().map(|range| range.end));
    let ends = needed.iter().map(|range| range.start).chain([rows]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_every_needed_row_once_and_in_order() {
        let needed = [3..10, 12..13, 20..47];
        for chunk_rows in [1, 4, 7, 16, 100] {
            let chunks = chunks(50, Some(&needed), chunk_rows);
            let mut seen = Vec::new();
            for (i, chunk) in chunks.iter().enumerate() {
                let mut at = 0;
                for piece in chunk {
                    assert_eq!(piece.at, at);
                    at = piece.place().end;
                    seen.extend(piece.rows.clone());
                }
                assert!(at == chunk_rows || i + 1 == chunks.len(), "only the last chunk may have room left");
            }
            assert_eq!(seen, needed.iter().cloned().flatten().collect::<Vec<_>>());
            let mut all: Vec<usize> = absent(50, Some(&needed)).into_iter().flatten().chain(seen).collect();
            all.sort_unstable();
            assert_eq!(all, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn without_a_list_every_row_is_needed() {
        assert_eq!(chunks(5, None, 4), [[Piece { at: 0, rows: 0..4 }], [Piece { at: 0, rows: 4..5 }]]);
        assert!(chunks(0, None, 4).is_empty() && absent(5, None).is_empty());
        assert!(chunks(5, Some(&[]), 4).is_empty());
        assert!(absent(5, Some(&[])).into_iter().flatten().eq(0..5));
    }
}
