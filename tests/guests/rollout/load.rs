//! Calls to all hosts while something else happens: over one connection that stays, and over a new one for each call.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use pvelet_proto::v1;
use pvelet_tests::Client;
use tokio::task::JoinHandle;

use crate::{control::Control, host::Host};

/// Calls that go on until they are counted.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    calls: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Begins.
    pub fn begin(control: &Control, hosts: &[Host]) -> Self {
        let shared = Arc::<Shared>::default();
        let mut tasks = Vec::new();
        let _runtime = control.runtime.enter();
        for host in hosts {
            let (name, (_, port)) = (host.name, host.ports());
            let (access, kept) = (control.access(), control.access().client(name, port));
            tasks.push(control.runtime.spawn(calls(shared.clone(), name, ("one connection", 200), move || kept.clone())));
            // A handshake is dear where it is emulated: more of them would be most of what the guests do.
            tasks.push(control.runtime.spawn(calls(shared.clone(), name, ("new connections", 500), move || access.client(name, port))));
        }
        Self { shared, tasks }
    }

    /// Ends: all calls, and what failed.
    pub fn end(self, control: &Control) -> (u64, Vec<String>) {
        self.shared.end.store(true, Ordering::SeqCst);
        for task in self.tasks {
            control.runtime.block_on(task).unwrap();
        }
        (self.shared.calls.load(Ordering::SeqCst), self.shared.failures.lock().unwrap().clone())
    }
}

/// One call every so many milliseconds: several guests are emulated on the same processors as this.
async fn calls(shared: Arc<Shared>, name: &'static str, (how, pause): (&'static str, u64), client: impl Fn() -> Client) {
    let mut pace = tokio::time::interval(Duration::from_millis(pause));
    while !shared.end.load(Ordering::SeqCst) {
        pace.tick().await;
        let result = client().agent.host().get_host(v1::GetHostRequest {}).await;
        shared.calls.fetch_add(1, Ordering::SeqCst);
        if let Err(status) = result {
            shared.failures.lock().unwrap().push(format!("{name}, {how}: {status}"));
        }
    }
}
