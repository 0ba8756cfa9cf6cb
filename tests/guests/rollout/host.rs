//! Hosts: guests with the simulated PVE in the place of PVE, and nothing of pvelet.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
    time::Duration,
};

use pvelet_tests::{Guest, GuestOptions, guest::Output, program};
use tempfile::TempDir;

/// Where the agent listens.
pub const PORT: u16 = 7443;
/// The hosts' names in PVE.
pub const NAMES: [&str; 3] = ["pve1", "pve2", "pve3"];
/// Every host's template.
pub const TEMPLATE: u32 = 9001;
/// For anything in a guest: several are emulated on two busy cores.
pub const SOON: Duration = Duration::from_secs(300);
const PVE: &str = include_str!("files/host.sh");
const SNAPSHOT: &str = include_str!("files/snapshot.sh");

type Order = Box<dyn FnOnce(&mut Guest) + Send>;

/// A guest in a thread of its own, with which it would end.
pub struct Host {
    pub name: &'static str,
    /// Its place among the hosts, from 1 on.
    pub n: u8,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Boots all hosts at once, and makes them PVE's.
    pub fn boot_all() -> Vec<Self> {
        let dir = TempDir::with_prefix("pve-sim").unwrap();
        let pve = dir.path().join("pve-sim");
        // Most of it is for debuggers, and each byte goes through ssh.
        let status = Command::new("strip").arg("-o").arg(&pve).arg(program("pve-sim")).status().unwrap();
        assert!(status.success(), "strip: {status}");
        let hosts: Vec<Self> = (1..).zip(NAMES).map(|(n, name)| Self::boot(n, name)).collect();
        let ready: Vec<Receiver<()>> = hosts
            .iter()
            .map(|host| {
                let pve = pve.clone();
                host.begin(move |guest| {
                    guest.copy_in(&pve, "/usr/lib/pve-sim/pve-sim").unwrap();
                    guest.sh(PVE);
                })
            })
            .collect();
        ready.iter().zip(&hosts).for_each(|(ready, host)| ready.recv().unwrap_or_else(|_| panic!("{} did not come up", host.name)));
        hosts
    }

    fn boot(n: u8, name: &'static str) -> Self {
        let (send, orders) = mpsc::channel::<Order>();
        let thread = thread::spawn(move || {
            let mut guest = Guest::boot(GuestOptions { name: name.into(), forwards: vec![PORT], ..GuestOptions::default() }).unwrap();
            // What fails in it is told to who asked; the guest goes on, for what comes next.
            for order in &orders {
                let _ = catch_unwind(AssertUnwindSafe(|| order(&mut guest)));
            }
        });
        Self { name, n, orders: Some(send), thread: Some(thread) }
    }

    /// Has something done in the guest's thread, and does not wait for it. The channel ends without an answer where that panics.
    pub fn begin<T: Send + 'static>(&self, work: impl FnOnce(&mut Guest) -> T + Send + 'static) -> Receiver<T> {
        let (send, receive) = mpsc::channel();
        let order: Order = Box::new(move |guest| {
            let _ = send.send(work(guest));
        });
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
        receive
    }

    /// Has something done in the guest's thread.
    pub fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut Guest) -> T + Send + 'static) -> T {
        self.begin(work).recv().unwrap_or_else(|_| panic!("{}: what was asked of it has failed", self.name))
    }

    /// Runs a script that must succeed.
    pub fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.with(move |guest| guest.sh(&script))
    }

    /// Runs a command.
    pub fn run(&self, line: &str) -> Output {
        let line = line.to_owned();
        self.with(move |guest| guest.run(&line))
    }

    /// Waits in the guest until a shell condition holds.
    pub fn wait_until(&self, condition: &str) {
        self.wait_for(condition, SOON);
    }

    /// The same for at most `limit`.
    pub fn wait_for(&self, condition: &str, limit: Duration) {
        let script = format!("until {condition}; do sleep 0.2; done").replace('\'', r"'\''");
        let line = format!("timeout {} sh -c '{script}'", limit.as_secs());
        let out = self.with(move |guest| guest.run_for(&line, limit + SOON));
        assert_eq!(out.status, 0, "{} never came to: {condition}\n{}", self.name, self.log());
    }

    /// Where its ports 22 and 7443 are reached on 127.0.0.1; they change with each start.
    pub fn ports(&self) -> (u16, u16) {
        self.with(|guest| (guest.port(22), guest.port(PORT)))
    }

    /// What an install, an upgrade or a removal may not change.
    pub fn snapshot(&self) -> String {
        self.sh(SNAPSHOT)
    }

    /// What there is of pvelet: a line for each thing.
    pub fn traces(&self) -> String {
        self.sh(
            "for f in /etc/pvelet /var/lib/pvelet /run/pvelet /usr/bin/pvelet-agent /usr/lib/systemd/system/pvelet-agent.service; do \
               [ ! -e $f ] || echo $f; done; dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' 'pvelet*' 2>/dev/null || :; ls -d /var/tmp/pvelet* 2>/dev/null || :",
        )
    }

    /// Calls the simulated PVE's control.
    pub fn pve(&self, arguments: &str) -> String {
        self.sh(&format!("/usr/lib/pve-sim/pve-sim ctl --dir /var/lib/pve-sim {arguments}"))
    }

    /// The end of the agent's log.
    pub fn log(&self) -> String {
        self.run("journalctl --no-pager --lines=30 --output=short-monotonic -u 'pvelet*' | cut -c1-220").stdout
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The thread ends when there are no more orders, and the guest with it.
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
