//! Rows of prompts that an engine has answered before.

use std::collections::HashMap;
use std::hash::Hash;

use super::experts::RoutedExperts;
use super::payload::ARGUMENT;
use crate::error::{Error, Kind, Result};

/// Routes of known prefixes, by the caller's key: a prompt's hash, a conversation's id. An engine that is asked for the rows from
/// `start_len` on sends less, and answers sooner; [`join`](PrefixStore::join) puts the known rows in front.
#[derive(Clone, Debug)]
pub struct PrefixStore<K> {
    rows: HashMap<K, RoutedExperts>,
}

impl<K: Eq + Hash> Default for PrefixStore<K> {
    fn default() -> Self {
        PrefixStore { rows: HashMap::new() }
    }
}

impl<K: Eq + Hash> PrefixStore<K> {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the rows of a prefix; returns what the key held before.
    pub fn insert(&mut self, key: K, rows: RoutedExperts) -> Option<RoutedExperts> {
        self.rows.insert(key, rows)
    }
    /// The rows of a known prefix: as many as the request's `start_len` may be.
    pub fn rows(&self, key: &K) -> Option<&RoutedExperts> {
        self.rows.get(key)
    }
    /// Forgets a prefix.
    pub fn remove(&mut self, key: &K) -> Option<RoutedExperts> {
        self.rows.remove(key)
    }
    /// The prefixes kept.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// What the rows take.
    pub fn bytes(&self) -> usize {
        self.rows.values().map(RoutedExperts::bytes).sum()
    }

    /// `[the first start_len rows of the prefix | own]`: the routes of a sequence whose own rows begin at `start_len`.
    ///
    /// # Errors
    /// `Routes` for an unknown key, a prefix of fewer rows, and for rows that differ in layers, k or packing.
    pub fn join(&self, key: &K, start_len: usize, own: &RoutedExperts) -> Result<RoutedExperts> {
        let fault = |message: String| Error::invalid(Kind::Routes, ARGUMENT, message);
        let prefix = self.rows.get(key).ok_or_else(|| {
            fault(format!("rows begin at {start_len}, and the prefix store does not know what is before them"))
        })?;
        if prefix.rows() < start_len {
            return Err(fault(format!("rows begin at {start_len}, but the known prefix has {} rows", prefix.rows())));
        }
        RoutedExperts::concat([&prefix.slice(0..start_len), own])
    }
}
