//! Named points at which a test makes the process end itself with SIGKILL: between every two steps of an operation.
//!
//! `PVELET_CRASH_AT=<name>[:n]` ends the process when the point is reached for the n-th time (from 1). `PVELET_PAUSE_AT=<name>[:n]` stops it
//! there for ever, after it wrote `pvelet-paused-at <name>` to `PVELET_PAUSE_FILE` or, where that is not set, to the console: a test then cuts
//! the power. Compiled in under the feature `crash-points` only; a release build has nothing of it.

/// Every crash point, in the order in which an operation passes them. A test checks that each stands in the code exactly once.
pub const NAMES: &[&str] = &[
    "task.upid_written",
    "clone.leased",
    "clone.intent_written",
    "clone.lane_held",
    "clone.called",
    "clone.task_ended",
    "clone.checked",
    "clone.bound",
    "clone.resize_called",
    "clone.resized",
    "clone.before_end",
    "clone.end_written",
    "configure.intent_written",
    "configure.written",
    "configure.resize_called",
    "configure.before_end",
    "configure.end_written",
    "power.intent_written",
    "power.called",
    "power.task_ended",
    "power.before_end",
    "power.end_written",
    "delete.intent_written",
    "delete.stopped",
    "delete.called",
    "delete.task_ended",
    "delete.volumes_checked",
    "delete.end_written",
    "volume.intent_written",
    "volume.before_end",
    "volume.end_written",
    "create_volume.allocated",
    "create_volume.copied",
    "create_volume.labelled",
    "delete_volume.checked",
    "delete_volume.freed",
    "attach_volume.checked",
    "attach_volume.task_ended",
    "volume.config_called",
    "detach_volume.checked",
    "detach_volume.task_ended",
    "detach_volume.renamed",
    "grow_volume.grown",
    "snapshot_volume.taken",
    "delete_volume_snapshot.removed",
    "roll_back_volume.done",
    "move_volume.copied",
    "move_volume.labelled",
    "move_volume.source_freed",
    "move_volume.allocated",
    "move_volume.called",
    "move_volume.task_ended",
    "move_volume.new_labelled",
    "hand_over_volume.renamed",
    "hand_over_volume.configured",
    "user_data.noted",
    "user_data.written",
    "user_data.removed",
    "certificate.key_written",
    "certificate.key_made",
    "certificate.staged",
    "certificate.decided",
    "certificate.key_placed",
    "certificate.file_placed",
    "certificate.placed",
    "rollback.begun",
    "rollback.task_stopped",
    "rollback.orphans_ended",
    "rollback.destroyed",
    "rollback.volumes_freed",
    "network.intent_written",
    "network.planned",
    "network.locked",
    "network.checkpoint_written",
    "network.armed",
    "network.file_checked",
    "network.file_written",
    "network.applying",
    "network.steps_run",
    "network.verified",
    "network.waiting",
    "network.confirmed",
    "network.end_written",
    "network.undo_begun",
    "network.undo_file_restored",
    "network.undo_steps_run",
    "network.undone",
    "network.boot_file_restored",
    "network.boot_undone",
    "repair.intent_written",
    "repair.checked",
    "repair.backed_up",
    "repair.before_edit",
    "repair.edited",
    "repair.unit_restarted",
    "repair.verified",
    "repair.before_restart",
    "repair.restarted",
    "repair.undo_begun",
    "repair.undo_edited",
    "repair.undo_restarted",
    "repair.undone",
    "repair.counted",
    "repair.end_written",
];

/// A named crash point.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "crash-points")]
        $crate::crash::reached($name);
    };
}

/// A point, and which pass of it counts.
#[cfg(feature = "crash-points")]
struct Wanted {
    name: String,
    nth: u64,
    passes: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "crash-points")]
impl Wanted {
    fn of(variable: &str) -> Option<Self> {
        let value = std::env::var(variable).ok()?;
        let (name, nth) = match value.split_once(':') {
            Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
            None => (value, 1),
        };
        Some(Self { name, nth, passes: 0.into() })
    }

    fn is(&self, name: &str) -> bool {
        self.name == name && self.passes.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 == self.nth
    }
}

/// Ends or stops the process when this is the point, and the pass, that `PVELET_CRASH_AT` or `PVELET_PAUSE_AT` names.
#[cfg(feature = "crash-points")]
pub fn reached(name: &str) {
    use std::sync::LazyLock;
    static CRASH: LazyLock<Option<Wanted>> = LazyLock::new(|| Wanted::of("PVELET_CRASH_AT"));
    static PAUSE: LazyLock<Option<Wanted>> = LazyLock::new(|| Wanted::of("PVELET_PAUSE_AT"));
    if CRASH.as_ref().is_some_and(|wanted| wanted.is(name)) {
        // SIGKILL cannot be caught, so nothing is flushed or undone: as when the power goes.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        park();
    }
    if PAUSE.as_ref().is_some_and(|wanted| wanted.is(name)) {
        let file = std::env::var_os("PVELET_PAUSE_FILE").unwrap_or_else(|| "/dev/console".into());
        let told = std::fs::OpenOptions::new().append(true).create(true).open(file);
        let _ = told.and_then(|mut file| std::io::Write::write_all(&mut file, format!("pvelet-paused-at {name}\n").as_bytes()));
        // Every thread: nothing must go on beside the one that came here.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGSTOP);
        park();
    }
}

#[cfg(feature = "crash-points")]
fn park() -> ! {
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::BTreeMap, fs, path::Path};

    use super::NAMES;

    fn points(dir: &Path, found: &mut BTreeMap<String, usize>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                points(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                for part in fs::read_to_string(&path).unwrap().split("crash_point!(\"").skip(1) {
                    *found.entry(part.split('"').next().unwrap().to_owned()).or_default() += 1;
                }
            }
        }
    }

    #[test]
    fn each_name_stands_in_the_code_exactly_once() {
        let mut found = BTreeMap::new();
        points(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let listed: BTreeMap<String, usize> = NAMES.iter().map(|n| ((*n).to_owned(), 1)).collect();
        found.remove(&["split", ""].concat());
        found.retain(|name, _| name.contains('.') || listed.contains_key(name));
        assert_eq!(found, listed);
    }
}
