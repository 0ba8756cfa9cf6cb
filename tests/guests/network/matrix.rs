//! Every step of a change x {SIGKILL of the agent, power cut} x {add, change, remove}.

use pvelet_proto::v1;

use crate::{
    drive::{Drive, ended, told},
    host::SOON,
    lane::{Case, Lane},
    networks::{Change, State},
};

/// The steps on the way to a final change.
const FORWARD: [&str; 13] = [
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
];
/// The steps of undoing one.
const BACK: [&str; 4] = ["network.undo_begun", "network.undo_file_restored", "network.undo_steps_run", "network.undone"];
/// The steps of undoing one before the network is up.
const BOOT: [&str; 2] = ["network.boot_file_restored", "network.boot_undone"];
/// The steps at which the smoke cuts the power: one of each of the ten, as each costs a boot.
const CUTS: [&str; 9] = [
    "network.planned",
    "network.locked",
    "network.checkpoint_written",
    "network.file_written",
    "network.applying",
    "network.steps_run",
    "network.verified",
    "network.waiting",
    "network.confirmed",
];

/// Who undoes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undoer {
    /// The agent, asked to.
    Agent,
    /// The timer, as the agent is dead.
    Timer,
    /// The boot unit, after a power cut.
    Boot,
}

/// What happens at the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Cut,
}

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Cut => "power cut",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Kill => "PVELET_CRASH_AT",
            Self::Cut => "PVELET_PAUSE_AT",
        }
    }
}

pub fn cases(full: bool) -> Vec<Case> {
    let steps: Vec<&str> = FORWARD.into_iter().chain(BACK).chain(BOOT).collect();
    let points: Vec<&str> = pvelet_agent::crash::NAMES.iter().copied().filter(|name| name.starts_with("network.")).collect();
    assert_eq!(steps, points, "each step of a change has its cases");
    let mut all = Vec::new();
    let mut turn = Change::ALL.into_iter().cycle();
    let mut add = |step: &'static str, fault: Fault, undoer: Option<Undoer>| {
        let changes = if full { Change::ALL.to_vec() } else { turn.next().into_iter().collect() };
        all.extend(changes.into_iter().map(|change| case(change, step, fault, undoer)));
    };
    for step in FORWARD {
        add(step, Fault::Kill, None);
    }
    for step in FORWARD.into_iter().filter(|step| full || CUTS.contains(step)) {
        add(step, Fault::Cut, None);
    }
    for (i, step) in BACK.into_iter().enumerate() {
        // In the smoke the two take turns, and the power goes in the middle only.
        for (k, undoer) in [Undoer::Agent, Undoer::Timer].into_iter().enumerate() {
            if full || i % 2 == k {
                add(step, Fault::Kill, Some(undoer));
            }
            if full || (i % 2 != k && (1..3).contains(&i)) {
                add(step, Fault::Cut, Some(undoer));
            }
        }
    }
    for (step, fault) in BOOT.into_iter().zip([Fault::Cut, Fault::Kill]) {
        let other = if fault == Fault::Cut { Fault::Kill } else { Fault::Cut };
        add(step, fault, Some(Undoer::Boot));
        if full {
            add(step, other, Some(Undoer::Boot));
        }
    }
    all
}

fn case(change: Change, step: &'static str, fault: Fault, undoer: Option<Undoer>) -> Case {
    let by = match undoer {
        None => "",
        Some(Undoer::Agent) => " undone by the agent",
        Some(Undoer::Timer) => " undone by the timer",
        Some(Undoer::Boot) => " undone at boot",
    };
    let run = move |lane: &mut Lane<'_>| match undoer {
        None => forward(lane, change, step, fault),
        Some(undoer) => back(lane, change, step, fault, undoer),
    };
    Case {
        name: format!("{}{by}", change.word()),
        step: step.trim_start_matches("network.").into(),
        fault: fault.word().into(),
        start: change.from(),
        latched: false,
        run: Box::new(run),
    }
}

/// The state that an operation's end tells of.
fn told_state(change: Change, op: &v1::Operation) -> State {
    assert!(ended(op), "{op:?}");
    if op.state() == v1::OperationState::Succeeded { change.to() } else { change.from() }
}

/// The end of the operation, whatever it takes, on a host whose agent runs again.
fn finish(lane: &Lane<'_>, drive: &Drive, change: Change) -> State {
    lane.host.start_agent();
    let result = lane.wait(drive.finish());
    let text = told(&result);
    told_state(change, &result.unwrap_or_else(|_| panic!("{text}\n{}", lane.host.log())))
}

fn forward(lane: &mut Lane<'_>, change: Change, step: &str, fault: Fault) -> State {
    lane.host.arm("run", fault.variable(), step);
    let pid = lane.host.restart_agent();
    let (drive, wish) = (Drive::new(lane.host.api()), lane.wish(change.to()));
    match fault {
        Fault::Kill => {
            let result = lane.wait(drive.clone().at_once().carry(&wish));
            assert!(result.as_ref().map_or(true, |_| step == "network.end_written"), "{step} was not passed: {}", told(&result));
            lane.host.wait_gone(pid);
        }
        Fault::Cut => {
            let (work, asked) = (drive.clone(), wish.clone());
            let carried = lane.lab.runtime.spawn(async move { work.carry(&asked).await });
            lane.host.guest.wait_console(&format!("pvelet-paused-at {step}"), SOON).unwrap();
            lane.host.guest.power_cut();
            carried.abort();
            lane.host.guest.start().unwrap();
        }
    }
    finish(lane, &drive, change)
}

/// A change that waits for its confirmation is undone by somebody, whom something happens to.
fn back(lane: &mut Lane<'_>, change: Change, step: &str, fault: Fault, undoer: Undoer) -> State {
    let (process, confirm) = match undoer {
        Undoer::Agent => ("run", 120),
        Undoer::Timer => ("deadline", 20),
        Undoer::Boot => ("boot", 120),
    };
    lane.host.arm(process, fault.variable(), step);
    let pid = lane.host.restart_agent();
    let drive = Drive::new(lane.host.api()).within(std::time::Duration::from_secs(confirm));
    let wish = lane.wish(change.to());
    let op = lane.applied(&drive, &wish);
    let paused = format!("pvelet-paused-at {step}");
    match undoer {
        Undoer::Agent => {
            let (work, name) = (drive.clone(), op.name.clone());
            let asked = lane.lab.runtime.spawn(async move { work.roll_back(&work.api.fresh(), &name).await });
            match fault {
                Fault::Kill => lane.host.wait_gone(pid),
                Fault::Cut => lane.host.guest.wait_console(&paused, SOON).unwrap(),
            }
            asked.abort();
        }
        Undoer::Timer => {
            lane.host.kill_agent();
            match fault {
                // Its next round ends what this one began.
                Fault::Kill => lane
                    .host
                    .wait_until("[ ! -e /etc/pvelet-fault/deadline ] && grep -q rolled_back /var/lib/pvelet/network/checkpoint.json"),
                Fault::Cut => lane.host.guest.wait_console(&paused, SOON).unwrap(),
            }
        }
        Undoer::Boot => {
            lane.host.guest.power_cut();
            match fault {
                Fault::Kill => lane.host.guest.start().unwrap(),
                Fault::Cut => lane.host.guest.start_until(&paused).unwrap(),
            }
        }
    }
    if fault == Fault::Cut {
        lane.host.guest.power_cut();
        lane.host.guest.start().unwrap();
        lane.host.guest.sh("rm -f /etc/pvelet-fault/*");
    }
    let state = finish(lane, &drive, change);
    assert_eq!(state, change.from(), "it was undone, and is said to be {state:?}");
    state
}
