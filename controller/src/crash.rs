//! Named crash points: where a test build of the controller can be made to die, to prove that it goes on from there.

/// Marks the place between two steps. Without the feature `crash-points` it compiles to nothing.
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "crash-points")]
        $crate::crash::reached($name);
    };
}
pub(crate) use crash_point;

/// Ends the process with SIGKILL when `PVELET_CRASH_AT` is `<name>` or `<name>:<nth>` and this is the nth time (from 1) it is reached.
#[cfg(feature = "crash-points")]
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
