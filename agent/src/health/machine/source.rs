//! A source made of a function.

use std::{pin::Pin, sync::Arc};

use tokio::sync::broadcast::error::RecvError;

use crate::{
    health::{Check, Finding, Group, Pace, Source},
    host::{
        pve::{Change, Pve},
        units::Units,
    },
};

/// A check of this group.
pub(super) const fn check(id: &'static str, why: &'static str) -> Check {
    Check { id, group: Group::Host, why }
}

type Stir = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A source whose look is a function.
pub(super) struct Look<F> {
    name: &'static str,
    checks: &'static [Check],
    pace: Pace,
    look: F,
    stir: Option<Stir>,
}

impl<F, L> Look<F>
where
    F: Fn() -> L + Send + Sync + 'static,
    L: Future<Output = Vec<Finding>> + Send,
{
    pub(super) fn new(name: &'static str, checks: &'static [Check], pace: Pace, look: F) -> Self {
        Self { name, checks, pace, look, stir: None }
    }

    /// It looks also when quorum, members or the cluster file system's answering have changed.
    pub(super) fn stirred_by_cluster(mut self, pve: &Arc<dyn Pve>) -> Self {
        let pve = Arc::clone(pve);
        self.stir = Some(Box::new(move || {
            let mut changes = pve.changes();
            Box::pin(async move {
                loop {
                    match changes.recv().await {
                        Ok(Change::Cluster) | Err(RecvError::Lagged(_)) => return,
                        Ok(_) => {}
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
            })
        }));
        self
    }

    /// It looks also when one of these units has changed.
    pub(super) fn stirred_by_units(mut self, units: &Arc<dyn Units>, names: &'static [&'static str]) -> Self {
        let units = Arc::clone(units);
        self.stir = Some(Box::new(move || {
            let mut changes = units.changes();
            Box::pin(async move {
                loop {
                    match changes.recv().await {
                        // An empty name: any may have changed.
                        Ok(name) if name.is_empty() || names.contains(&name.as_str()) => return,
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => return,
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
            })
        }));
        self
    }

    pub(super) fn done(self) -> Arc<dyn Source> {
        Arc::new(self)
    }
}

#[tonic::async_trait]
impl<F, L> Source for Look<F>
where
    F: Fn() -> L + Send + Sync + 'static,
    L: Future<Output = Vec<Finding>> + Send,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn checks(&self) -> &'static [Check] {
        self.checks
    }

    fn pace(&self) -> Pace {
        self.pace
    }

    async fn look(&self) -> Vec<Finding> {
        (self.look)().await
    }

    async fn stirred(&self) {
        match &self.stir {
            Some(stir) => stir().await,
            None => std::future::pending().await,
        }
    }
}
