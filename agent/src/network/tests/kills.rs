//! Somebody kills the agent, the timer's command or the boot unit's anywhere, cuts the power, and lets them come in any order: the host is as
//! it was or as it was to be, never between.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::{host::net::fake::Fault, network::recover};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Add,
    Alter,
    Remove,
}

/// What comes after a kill.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// The agent is started again.
    Agent,
    /// Its time goes by, and the timer's command is run.
    Timer,
    /// The power is cut; the boot unit runs.
    Boot,
    /// The power is cut; there is no boot unit.
    BootWithoutUnit,
}

#[derive(Debug, Clone)]
struct Kill {
    /// At which call.
    at: usize,
    /// After it did its work.
    after: bool,
    /// How many more steps what was left running does before anybody comes.
    steps: usize,
    next: Next,
}

fn kill() -> impl Strategy<Value = Kill> {
    let next = prop_oneof![Just(Next::Agent), Just(Next::Timer), Just(Next::Boot), Just(Next::BootWithoutUnit)];
    (1_usize..70, any::<bool>(), 0_usize..3, next).prop_map(|(at, after, steps, next)| Kill { at, after, steps, next })
}

fn changed() -> Vec<v1::InterfaceSpec> {
    let mut wanted = vec![vlan("trunk", "eth1", 200), bridge("vmbr100", &["trunk"], &[]), vlan("eth2.7", "eth2", 7)];
    wanted[1].mtu = 1400;
    wanted[1].addresses = vec!["198.51.100.1/24".into()];
    wanted
}

async fn ask(rig: &Rig, change: Wish) -> Result<v1::Operation, Error> {
    match change {
        Wish::Add => rig.apply(apply("asked", "m", vec![vlan("eth2.7", "eth2", 7), bridge("vmbr7", &["eth2.7"], &[])])).await,
        Wish::Alter => rig.apply(apply("asked", "n", changed())).await,
        Wish::Remove => rig.remove(remove("asked", "n")).await,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn end(host: &FakeHost) -> (Shape, Option<String>) {
    (shape(&host.kernel()), host.own_file())
}

/// A host with one network already.
static HOST: LazyLock<FakeHost> = LazyLock::new(|| {
    let (host, dir) = (FakeHost::new(), tempfile::tempdir().unwrap());
    runtime().block_on(async {
        let rig = open(dir.path(), &host, &FakePve::new(NODE));
        rig.make("first", "n", vec![vlan("trunk", "eth1", 100), bridge("vmbr100", &["trunk"], &[])]).await;
    });
    host
});

/// How it ends where nothing goes wrong.
fn made(change: Wish) -> (Shape, Option<String>) {
    let (host, dir) = (HOST.copy(), tempfile::tempdir().unwrap());
    agent(dir.path(), &host, None, Some(change), true);
    end(&host)
}

static ADDED: LazyLock<(Shape, Option<String>)> = LazyLock::new(|| made(Wish::Add));
static CHANGED: LazyLock<(Shape, Option<String>)> = LazyLock::new(|| made(Wish::Alter));
static REMOVED: LazyLock<(Shape, Option<String>)> = LazyLock::new(|| made(Wish::Remove));

fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    // Each case is several runs of an agent, with a journal that is fsynced.
    ProptestConfig { failure_persistence: None, cases: (config.cases / 4).max(1), ..config }
}

/// One run of the agent; `None`: the last, which is not killed.
fn agent(dir: &Path, host: &FakeHost, kill: Option<&Kill>, change: Option<Wish>, confirms: bool) {
    let runtime = runtime();
    runtime.block_on(async {
        let rig = open(dir, host, &FakePve::new(NODE));
        if let Some(kill) = kill {
            rig.net.at("", kill.at, if kill.after { Fault::KillAfter } else { Fault::KillBefore });
        }
        let work = async {
            rig.networks.settle().await;
            if let Some(change) = change {
                let _ = ask(&rig, change).await;
            }
            loop {
                if confirms && rig.phase() == "waiting" {
                    let operation = rig.host.checkpoint().unwrap()["operation"].as_str().unwrap().to_owned();
                    let opened = rig.opened().await;
                    let _ = rig.confirm(&operation, opened).await;
                }
                if rig.ops.active() == 0 && !["prepared", "applying", "waiting", "rolling_back"].contains(&rig.phase().as_str()) {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! { () = work => {} () = rig.net.killed() => {} }
    });
    // What it had begun to write comes to the disk, or not; nothing of it goes on.
    runtime.shutdown_timeout(Duration::from_secs(5));
}

fn operation(host: &FakeHost) -> Option<String> {
    host.checkpoint().and_then(|c| c["operation"].as_str().map(str::to_owned))
}

/// What comes after a kill.
fn recover(host: &FakeHost, kill: &Kill) {
    match kill.next {
        Next::Agent => {}
        Next::Timer => runtime().block_on(async {
            host.time_goes_by(CONFIRM * 5);
            let net = host.process();
            net.at("", kill.at % 20 + 1, Fault::KillBefore);
            let recovered = recover::deadline(&*net);
            tokio::select! { _ = recovered => {} () = net.killed() => {} }
        }),
        Next::Boot => runtime().block_on(async {
            host.reboot();
            let net = host.process();
            net.at("", kill.at % 8 + 1, if kill.after { Fault::KillAfter } else { Fault::KillBefore });
            tokio::select! { _ = recover::boot(&*net) => {} () = net.killed() => {} }
            // The power is cut once more, in the middle of it.
            host.reboot();
            recover::boot(&*host.process()).await.unwrap();
            host.networking();
        }),
        Next::BootWithoutUnit => {
            host.reboot();
            host.networking();
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_host_is_as_it_was_or_as_it_was_to_be(
        change in prop_oneof![Just(Wish::Add), Just(Wish::Alter), Just(Wish::Remove)],
        kills in proptest::collection::vec(kill(), 0..4),
        confirms in any::<bool>(),
    ) {
        let (host, dir) = (HOST.copy(), tempfile::tempdir().unwrap());
        let (old, first) = (end(&host), operation(&host));
        let new = match change {
            Wish::Add => &*ADDED,
            Wish::Alter => &*CHANGED,
            Wish::Remove => &*REMOVED,
        };
        prop_assert_ne!(new, &old);
        let mut asks = Some(change);
        for kill in &kills {
            agent(dir.path(), &host, Some(kill), asks.take(), confirms);
            (0..kill.steps).for_each(|_| host.unit_goes_on());
            recover(&host, kill);
        }
        agent(dir.path(), &host, None, asks, confirms);

        let phase = phase(&host);
        // The checkpoint tells of this change, or it never came so far.
        let wanted = if operation(&host) != first && phase == "confirmed" { new } else { &old };
        prop_assert_eq!(&end(&host), wanted, "{}", phase);
        prop_assert!(confirms || wanted == &old);
        prop_assert!(["confirmed", "rolled_back"].contains(&phase.as_str()), "{phase}");
        prop_assert!(!host.armed() && !host.old_file_is_left());
    }
}
