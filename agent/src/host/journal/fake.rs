//! A journal in memory, for tests.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::{Entry, Journal, Page, Query};
use crate::error::Error;

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<(String, Entry)>,
    failing: Option<Error>,
    asked: Vec<Query>,
}

/// A journal that holds what a test writes to it.
#[derive(Debug, Default)]
pub struct FakeJournal(Mutex<Inner>);

impl FakeJournal {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds an entry.
    pub fn write(&self, unit: &str, time: SystemTime, message: &str) {
        self.lock().entries.push((unit.to_owned(), Entry { time, message: message.to_owned() }));
    }

    /// Every read ends with this error; `None`: no longer.
    pub fn fail(&self, error: Option<Error>) {
        self.lock().failing = error;
    }

    /// What was asked.
    pub fn asked(&self) -> Vec<Query> {
        self.lock().asked.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Journal for FakeJournal {
    async fn read(&self, query: Query, _: Duration) -> Result<Page, Error> {
        let mut inner = self.lock();
        inner.asked.push(query.clone());
        if let Some(error) = &inner.failing {
            return Err(error.clone());
        }
        let first = query.after.as_ref().and_then(|c| c.parse::<usize>().ok()).map_or(0, |c| c + 1);
        let all = inner.entries.iter().enumerate().skip(first).filter(|(_, (unit, e))| *unit == query.unit && e.time >= query.since);
        let all: Vec<_> = all.collect();
        let kept = &all[all.len().saturating_sub(query.entries)..];
        Ok(Page {
            entries: kept.iter().map(|(_, (_, entry))| entry.clone()).collect(),
            cursor: kept.last().map(|(at, _)| at.to_string()).or(query.after),
            cut: kept.len() < all.len(),
        })
    }
}
