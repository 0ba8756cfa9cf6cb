//! A hung `pmxcfs`: nobody reads requests any more.
//!
//! To stop as a stopped process does, the one thread that reads requests is led into a lookup of a name that nobody else asks for, and kept there. All other
//! requests wait in the kernel, unread, so that whoever waits for them can still be killed.

use std::sync::{Condvar, Mutex, PoisonError};

/// The name whose lookup blocks while the gate is shut.
pub(super) const PLUG: &str = ".pve-sim-hang";

#[derive(Default)]
struct State {
    shut: bool,
    /// The reading thread waits inside.
    caught: bool,
}

/// Shut by [`Gate::shut`]; the thread that passes waits until it is opened.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
}

impl Gate {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts the gate; says whether it was open.
    pub(super) fn shut(&self) -> bool {
        !std::mem::replace(&mut self.lock().shut, true)
    }

    /// Waits until a thread is caught.
    pub(super) fn wait_caught(&self) {
        drop(self.moved.wait_while(self.lock(), |state| state.shut && !state.caught));
    }

    /// Opens the gate.
    pub(super) fn open(&self) {
        self.lock().shut = false;
        self.moved.notify_all();
    }

    /// Waits while the gate is shut.
    pub(super) fn pass(&self) {
        let mut state = self.lock();
        if state.shut {
            state.caught = true;
            self.moved.notify_all();
            state = self.moved.wait_while(state, |state| state.shut).unwrap_or_else(PoisonError::into_inner);
            state.caught = false;
        }
    }
}
