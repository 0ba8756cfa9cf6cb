//! Named crash points: where a test build of the controller can be made to die, to prove that it goes on from there.

/// Marks the place between two steps of an async function; with `sync` before its name, of another one, where only whole programs die. Without
/// the feature `crash-points` it compiles to nothing.
macro_rules! crash_point {
    (sync $name:literal) => {
        #[cfg(all(feature = "crash-points", not(test)))]
        $crate::crash::reached($name);
    };
    ($name:literal) => {
        #[cfg(test)]
        $crate::crash::testing::reached($name).await;
        #[cfg(all(feature = "crash-points", not(test)))]
        $crate::crash::reached($name);
    };
}
pub(crate) use crash_point;

/// Ends the process with SIGKILL when `PVELET_CRASH_AT` is `<name>` or `<name>:<nth>` and this is the nth time (from 1) it is reached.
#[cfg(all(feature = "crash-points", not(test)))]
pub(crate) fn reached(name: &str) {
    use std::{
        collections::HashMap,
        sync::{LazyLock, Mutex, PoisonError},
    };
    static WANTED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let text = std::env::var("PVELET_CRASH_AT").ok()?;
        match text.rsplit_once(':') {
            Some((name, nth)) => Some((name.to_owned(), nth.parse().ok()?)),
            None => Some((text, 1)),
        }
    });
    static COUNTS: LazyLock<Mutex<HashMap<String, u64>>> = LazyLock::new(Mutex::default);
    let Some((wanted, nth)) = WANTED.as_ref().filter(|(wanted, _)| wanted == name) else { return };
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(wanted.clone()).or_insert(0);
    *count += 1;
    if count == nth {
        // Not abort: a test wants what a power cut or the kernel's OOM killer leaves behind, without any handler run.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// In unit tests a crash is a pass that never goes on; the test then drops the controller.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::RefCell;

    use tokio_util::sync::CancellationToken;

    /// Every crash point of machines.
    pub(crate) const ALL: [&str; 5] =
        ["machine.finalizer.stored", "machine.attempt.stored", "machine.status.stored", "machine.call.answered", "machine.released"];

    /// Every crash point of networks.
    pub(crate) const NETWORK: [&str; 9] = [
        "network.finalizer.stored",
        "network.attempt.stored",
        "network.status.stored",
        "network.call.answered",
        "network.connected",
        "network.probed",
        "network.confirmed",
        "network.rolled_back",
        "network.released",
    ];

    /// Every crash point of a host's Node.
    pub(crate) const NODE: [&str; 5] = ["node.remembered", "node.finalizer.stored", "node.tainted", "node.told", "node.left"];

    thread_local! {
        /// A test's tasks all run on its own thread.
        static ARMED: RefCell<Option<(&'static str, u32, CancellationToken)>> = const { RefCell::new(None) };
    }

    /// The nth time (from 1) that this point is reached, nothing goes on, and the token is cancelled.
    pub(crate) fn arm(name: &'static str, nth: u32) -> CancellationToken {
        let token = CancellationToken::new();
        ARMED.set(Some((name, nth, token.clone())));
        token
    }

    pub(crate) async fn reached(name: &str) {
        let crashed = ARMED.with_borrow_mut(|armed| match armed {
            Some((wanted, nth, token)) if *wanted == name => {
                *nth = nth.saturating_sub(1);
                if *nth == 0 { Some(token.clone()) } else { None }
            }
            _ => None,
        });
        if let Some(token) = crashed {
            ARMED.take();
            token.cancel();
            std::future::pending::<()>().await;
        }
    }
}
