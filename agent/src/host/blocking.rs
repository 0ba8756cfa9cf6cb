//! Calls of the system that may hang, such as those on a dead file system.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use crate::error::{Error, Trouble};

/// A place for one thread that looks at something which may hang. While one hangs there no other is started: a look each few seconds at a dead
/// file system would else use up all threads of the agent. Cheap to clone; clones share the place.
#[derive(Debug, Clone)]
pub struct Blocking(Arc<Semaphore>);

impl Default for Blocking {
    fn default() -> Self {
        Self::new()
    }
}

impl Blocking {
    /// A place that is free.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Does `work` on a thread of its own. It may be dropped at any time; the thread then goes on, and keeps the place until it ends.
    ///
    /// # Errors
    /// Those of `work`; `Look` with [`Trouble::Silent`] when the place is not free, or the work not done, within `patience`; `Internal` when it
    /// panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        what: &str,
        patience: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = async {
            let place = Arc::clone(&self.0).acquire_owned().await.map_err(|e| Error::Internal(e.to_string()))?;
            let thread = tokio::task::spawn_blocking(move || {
                let _place = place;
                work()
            });
            thread.await.map_err(|e| Error::Internal(format!("{what}: {e}")))?
        };
        let late = |_| {
            let hung = if self.0.available_permits() == 0 { "; the call hangs" } else { "" };
            Error::Look { trouble: Trouble::Silent, message: format!("{what} did not answer within {} s{hung}", patience.as_secs_f32()) }
        };
        tokio::time::timeout(patience, done).await.map_err(late)?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn while_one_hangs_no_other_is_started() {
        let (place, started) = (Blocking::new(), Arc::new(AtomicU32::new(0)));
        let (free, hang) = mpsc::channel::<()>();
        let counted = started.clone();
        let hung = place.run("the disk", Duration::ZERO, move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = hang.recv();
            Ok(())
        });
        // Polled once, so that the thread is there.
        assert!(hung.await.unwrap_err().to_string().starts_with("the disk did not answer within 0 s"));
        for _ in 0..3 {
            let counted = started.clone();
            let next = place.run("the disk", Duration::ZERO, move || {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            assert!(matches!(next.await, Err(Error::Look { trouble: Trouble::Silent, .. })));
        }
        free.send(()).unwrap();
        place.run("the disk", Duration::from_secs(60), || Ok(())).await.unwrap();
        assert_eq!(started.load(Ordering::SeqCst), 1, "none of the three was started");
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_place_is_free_again() {
        let place = Blocking::new();
        let error = place.run::<()>("the disk", Duration::from_secs(60), || panic!("broken")).await.unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error}");
        assert_eq!(place.run("the disk", Duration::from_secs(60), || Ok(7)).await.unwrap(), 7);
    }
}
