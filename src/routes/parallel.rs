//! Which tokens of a sequence a context-parallel rank holds.

use crate::error::{Error, Kind, Result};

/// How a sequence is divided among ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Rank r has the r-th of C equal parts.
    Contiguous,
    /// Of 2C chunks, rank r has chunks r and 2C − 1 − r: causal attention then costs every rank the same (Megatron, ring attention).
    Zigzag,
}

/// Context parallelism over C ranks. Every sequence is padded to a multiple of 2C tokens by itself, whatever the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextParallel {
    ranks: usize,
    split: Split,
}

impl ContextParallel {
    /// C ranks.
    ///
    /// # Errors
    /// `Config` for none.
    pub fn new(ranks: usize, split: Split) -> Result<ContextParallel> {
        // Twice as many chunks must be countable.
        if ranks == 0 || ranks > usize::MAX / 4 {
            return Err(Error::invalid(Kind::Config, "ranks", format!("are {ranks}, need at least 1")));
        }
        Ok(ContextParallel { ranks, split })
    }

    /// C.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    fn chunk(&self, tokens: usize) -> usize {
        tokens.div_ceil(2 * self.ranks)
    }

    /// How many rows each rank has of a sequence, padding included.
    pub fn local_tokens(&self, tokens: usize) -> usize {
        2 * self.chunk(tokens)
    }

    /// The token that a rank's row is; `None` for padding. Panics if the rank or the row is outside.
    pub fn position(&self, tokens: usize, rank: usize, local: usize) -> Option<usize> {
        let chunk = self.chunk(tokens);
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        assert!(local < 2 * chunk, "row {local} of {}", 2 * chunk);
        let position = match self.split {
            Split::Contiguous => rank * 2 * chunk + local,
            Split::Zigzag if local < chunk => rank * chunk + local,
            Split::Zigzag => (2 * self.ranks - 1 - rank) * chunk + (local - chunk),
        };
        (position < tokens).then_some(position)
    }

    /// The tokens that a rank holds, in its own order. Panics if there is no such rank.
    pub fn positions(self, tokens: usize, rank: usize) -> impl ExactSizeIterator<Item = Option<usize>> {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        (0..self.local_tokens(tokens)).map(move |local| self.position(tokens, rank, local))
    }

    /// The inverse: the rank that holds a token, and the token's row there. Panics if the token is outside.
    pub fn owner(&self, tokens: usize, position: usize) -> (usize, usize) {
        assert!(position < tokens, "token {position} of {tokens}");
        let chunk = self.chunk(tokens);
        let (number, inside) = (position / chunk, position % chunk);
        match self.split {
            Split::Contiguous => (number / 2, number % 2 * chunk + inside),
            Split::Zigzag if number < self.ranks => (number, inside),
            Split::Zigzag => (2 * self.ranks - 1 - number, chunk + inside),
        }
    }
}
