//! Streams of operations.

use std::{collections::VecDeque, sync::Arc};

use futures_util::stream::{self, Stream};
use pvelet_proto::v1;
use tokio::sync::broadcast::{self, error::RecvError};

use super::Operations;
use crate::error::Error;

/// Changes that a reader may lag behind before its stream is ended.
pub(super) const BACKLOG: usize = 1024;

struct Watch {
    tenant: Option<String>,
    /// What was there at the beginning; `None` ends it.
    first: VecDeque<Option<Arc<v1::Operation>>>,
    changes: broadcast::Receiver<Arc<v1::Operation>>,
    failed: bool,
}

impl Operations {
    /// Snapshots of operations: first those that have not ended and those changed after `since_revision` (0: only the former), by ascending
    /// revision; then `None` once; then every change. Only those of `tenant`, when given. A revision that this journal never gave comes
    /// from a lost one: then all operations are told. A reader that lags too far gets `SlowConsumer` and the end.
    pub fn watch(
        self: &Arc<Self>,
        tenant: Option<&str>,
        since_revision: u64,
    ) -> impl Stream<Item = Result<Option<v1::Operation>, Error>> + Send + use<> {
        let (first, changes) = self.snapshot(since_revision);
        let tenant = tenant.map(str::to_owned);
        let seen = |op: &Arc<v1::Operation>| tenant.as_ref().is_none_or(|t| *t == op.tenant);
        let mut first: VecDeque<_> = first.into_iter().filter(seen).map(Some).collect();
        first.push_back(None);
        stream::unfold(Watch { tenant, first, changes, failed: false }, |mut watch| async move {
            if watch.failed {
                return None;
            }
            if let Some(item) = watch.first.pop_front() {
                return Some((Ok(item.map(|op| (*op).clone())), watch));
            }
            loop {
                match watch.changes.recv().await {
                    Ok(op) if watch.tenant.as_ref().is_none_or(|t| *t == op.tenant) => return Some((Ok(Some((*op).clone())), watch)),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => {
                        watch.failed = true;
                        return Some((Err(Error::SlowConsumer), watch));
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        })
    }
}
