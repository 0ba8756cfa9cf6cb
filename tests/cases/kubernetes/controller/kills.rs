//! The controller killed again and again while machines are made and changed: each VM is made once.
//!
//! `PVELET_CONTROLLER_KILLS=<n>` says how often, with more machines from 50 on; `PVELET_CONTROLLER_SEED=<n>` draws again as a former run did.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use pvelet_tests::{
    Controller, counts,
    kubernetes::{
        Events,
        site::{HOSTS, LIMIT, MACHINES, Site},
    },
    rng::Rng,
    stack::StackOptions,
    status::condition,
};
use serde_json::{Value, json};
use tokio::time::timeout;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/pvelet/leases/pvelet-controller";
/// Machines that are changed before each round, so that there is work in all of them.
const CHANGED: usize = 4;
/// What a controller that has done everything may take to come to its crash point still.
const AFTER_ALL: Duration = Duration::from_secs(2);
const SIGKILL: Option<i32> = Some(9);

/// How a round is to end.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// At the nth time that it comes to this point of a machine's pass.
    At(&'static str, u64),
    /// By SIGKILL from outside, when so many writes of machines were seen.
    After(u64),
}

impl Death {
    /// Drawn by lot, so that it comes to it. `begun`: machines with which a former round was not done; each is written once at least. `fresh`: machines
    /// that were well, and have something to be done now; each is written twice at least, and comes to each of the points. `new`: one has no VM yet.
    fn draw(rng: &mut Rng, begun: u64, fresh: u64, new: bool) -> Self {
        let points = ["machine.status.stored", "machine.attempt.stored", "machine.call.answered", "machine.finalizer.stored"];
        let points = &points[..if new {
            4
        } else if fresh > 0 {
            3
        } else {
            1
        }];
        if rng.chance(40) {
            return Self::After(rng.between(1, begun + 2 * fresh));
        }
        match rng.pick(points) {
            point @ "machine.finalizer.stored" => Self::At(point, 1),
            point @ "machine.status.stored" => Self::At(point, rng.between(1, begun + fresh)),
            point => Self::At(point, rng.between(1, fresh)),
        }
    }
}

/// What became of all rounds.
#[derive(Debug, Default)]
struct Tally {
    points: BTreeMap<&'static str, u32>,
    signals: u32,
    idle: u32,
}

impl Tally {
    fn at_points(&self) -> u32 {
        self.points.values().sum()
    }

    fn points(&self) -> String {
        self.points.iter().map(|(point, count)| format!("{} {count}", point.trim_start_matches("machine."))).collect::<Vec<_>>().join(", ")
    }
}

/// Made, and as its spec says.
fn done(machine: &Value) -> bool {
    let generation = &machine["metadata"]["generation"];
    condition(machine, "Ready") == "True"
        && ["observedGeneration", "verifiedGeneration"].iter().all(|f| machine["status"][f] == *generation)
}

/// The machines as they were seen, and what happens to them.
struct Work {
    done: BTreeMap<String, bool>,
    events: Events,
    writes: u64,
}

impl Work {
    /// From now on.
    async fn see(site: &Site) -> Self {
        let list = site.admin().get(MACHINES).await.unwrap();
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        let machines = list["items"].as_array().into_iter().flatten();
        let done = machines.map(|m| (m["metadata"]["name"].as_str().unwrap().to_owned(), done(m))).collect();
        Self { done, events: site.admin().watch(MACHINES, version).await.unwrap(), writes: 0 }
    }

    /// Takes in the next write. Whoever stops waiting has lost nothing.
    async fn next(&mut self) {
        let (kind, machine) = self.events.next().await.expect("a watch of an API server that lives");
        assert_eq!(kind, "MODIFIED", "{machine:#}");
        self.done.insert(machine["metadata"]["name"].as_str().unwrap().to_owned(), done(&machine));
        self.writes += 1;
    }

    fn is_done(&self) -> bool {
        self.done.values().all(|done| *done)
    }
}

/// Runs the controller until it dies.
async fn round(site: &Site, controller: &mut Controller, death: Death, tally: &mut Tally) {
    let mut work = Work::see(site).await;
    let at = match death {
        Death::At(point, nth) => format!("{point}:{nth}"),
        Death::After(_) => String::new(),
    };
    controller.start_with(&[("PVELET_CRASH_AT", &at)]).unwrap();
    let mut ended = |status: ExitStatus| {
        let Death::At(point, _) = death else { panic!("it ended by itself: {status}") };
        assert_eq!(status.signal(), SIGKILL, "it ended otherwise than by a kill: {status}");
        *tally.points.entry(point).or_default() += 1;
    };
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        tokio::select! {
            status = controller.ended() => return ended(status),
            () = work.next() => {}
            () = tokio::time::sleep_until(end) => panic!("nothing more happens: {:?}, {} writes\n{}", work.done, work.writes, controller.log()),
        }
        let killed = matches!(death, Death::After(writes) if work.writes >= writes);
        if !killed && work.is_done() {
            if let Ok(status) = timeout(AFTER_ALL, controller.ended()).await {
                return ended(status);
            }
            tally.idle += 1;
        }
        if killed {
            tally.signals += 1;
        }
        if killed || work.is_done() {
            return controller.kill();
        }
    }
}

#[tokio::test]
async fn a_controller_that_is_killed_again_and_again_makes_each_vm_once() {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}")));
    let rounds = number("PVELET_CONTROLLER_KILLS").unwrap_or(12);
    let machines = if rounds >= 50 { 30 } else { 8 };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("PVELET_CONTROLLER_SEED").unwrap_or(now.as_secs() % 1_000_000);
    // Shown where it fails.
    println!("controller: PVELET_CONTROLLER_KILLS={rounds} PVELET_CONTROLLER_SEED={seed}");
    let mut rng = Rng::new(seed);
    let site = Site::start(StackOptions { nodes: vec!["pve1", "pve2"], ..StackOptions::default() }).await;
    let before = site.stack.sim.control().leftovers().unwrap();
    let mut controller = site.controller("lab", "a").await;
    // Room for all, on however small a machine this runs.
    for node in ["pve1", "pve2"] {
        site.admin().merge(&format!("{HOSTS}/{node}"), &json!({"spec": {"cpuOvercommit": 100}})).await.unwrap();
    }
    let mut tally = Tally::default();
    let mut names: Vec<String> = Vec::new();
    for round_number in 0..rounds {
        let seen = Work::see(&site).await.done;
        let mut rest: Vec<String> = seen.iter().filter(|(_, done)| **done).map(|(name, _)| name.clone()).collect();
        let (begun, mut fresh) = (seen.len() - rest.len(), 0);
        while (names.len() as u64) < ((round_number + 1) * machines).div_ceil(rounds) {
            let name = format!("web-{:02}", names.len());
            site.machine(&name, json!({"memory": "128Mi"})).await;
            names.push(name);
            fresh += 1;
        }
        let new = fresh > 0;
        while fresh < CHANGED && !rest.is_empty() {
            let name = rest.swap_remove(usize::try_from(rng.below(rest.len() as u64)).unwrap());
            let tags = [format!("r{}", rng.below(1 << 32))];
            site.admin().merge(&format!("{MACHINES}/{name}"), &json!({"spec": {"tags": tags}})).await.unwrap();
            fresh += 1;
        }
        let death = Death::draw(&mut rng, begun as u64, fresh as u64, new);
        println!("round {round_number}: {death:?}");
        round(&site, &mut controller, death, &mut tally).await;
        // One that is killed does not give the Lease back, and the next would wait for its end.
        site.admin().merge(LEASE, &json!({"spec": {"holderIdentity": ""}})).await.unwrap();
    }
    controller.start();
    for name in &names {
        site.wait(name, done).await;
    }
    let vms = site.vms().await;
    counts::tell(&format!(
        "controller: {rounds} kills ({} at crash points: {}; {} by SIGKILL after some writes; {} when all was done), {machines} machines, {} VMs; seed {seed}",
        tally.at_points(),
        tally.points(),
        tally.signals,
        tally.idle,
        vms.len(),
    ));
    assert_eq!(vms, names);
    assert!(u64::from(tally.idle) * 5 <= rounds, "too many kills of a controller that had nothing to do: {tally:?}");
    // Nor is there anything else of what was begun.
    for name in &names {
        site.admin().delete(&format!("{MACHINES}/{name}")).await.unwrap();
    }
    for name in &names {
        site.admin().wait_gone(MACHINES, name, LIMIT).await;
    }
    assert_eq!(site.stack.sim.control().leftovers().unwrap(), before);
}
