//! One host that cases are run on, one after the other; each has to leave it in a known state.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, mpsc::Receiver},
    time::Instant,
};

use pvelet_proto::v1;
use pvelet_tests::Client;
use tonic::Status;

use crate::{
    controller::Lent,
    drive::{Drive, Wish, look, told, waiting},
    host::{Host, Lab, WayIn, name},
    kinds::ping,
    networks::{SUBJECT, State, subject},
    report::{End, Report, Row},
    snapshot::Snapshot,
};

/// Something that is done to a host in a known state. It says in which state the host then is, which is not believed.
pub struct Case {
    pub name: String,
    pub step: String,
    pub fault: String,
    pub start: State,
    /// Whether it shows that a change which could not be undone is told, and ends all changes.
    pub latched: bool,
    pub run: Box<dyn Fn(&mut Lane<'_>) -> State + Send>,
}

impl Case {
    /// One on a host without the subject, which has to be so again afterwards.
    pub fn new(name: &str, fault: &str, run: impl Fn(&mut Lane<'_>) + Send + 'static) -> Self {
        let run = move |lane: &mut Lane<'_>| {
            run(lane);
            State::Bare
        };
        Self { name: name.into(), step: "-".into(), fault: fault.into(), start: State::Bare, latched: false, run: Box::new(run) }
    }
}

/// The cases that are left.
pub struct Queue(Mutex<Vec<Case>>);

impl Queue {
    pub fn new(cases: Vec<Case>) -> Self {
        Self(Mutex::new(cases))
    }

    /// The next one, best of all one that begins as the host is.
    fn next(&self, state: State) -> Option<Case> {
        let mut cases = self.0.lock().unwrap();
        let at = cases.iter().position(|case| case.start == state).unwrap_or(0);
        (!cases.is_empty()).then(|| cases.remove(at))
    }
}

/// A host and what is known of it.
pub struct Lane<'a> {
    pub lab: &'a Lab,
    pub host: Host,
    pub way_in: WayIn,
    state: State,
    /// How it looks in each state, learnt at its first visit.
    looks: BTreeMap<State, Snapshot>,
}

impl<'a> Lane<'a> {
    /// Boots the host and installs the agent. `None`: there is no peer.
    pub fn start(lab: &'a Lab, n: u8, peer: &Receiver<WayIn>) -> Option<Self> {
        let host = Host::boot(lab, n);
        let way_in = peer.recv().ok()?;
        let mut this = Self { lab, host, way_in, state: State::Bare, looks: BTreeMap::new() };
        this.install();
        Some(this)
    }

    fn install(&mut self) {
        self.host.install(self.lab, &self.way_in);
        self.state = State::Bare;
        self.looks = BTreeMap::from([(State::Bare, self.host.snapshot())]);
    }

    /// A new host in place of one that cannot be used any more.
    fn renew(&mut self) {
        self.host = Host::boot(self.lab, self.host.n);
        self.install();
    }

    /// Runs all cases.
    pub fn run(&mut self, queue: &Queue, report: &Report) {
        while let Some(case) = queue.next(self.state) {
            let begun = Instant::now();
            let (end, detail) = self.run_one(&case);
            if !matches!(end, End::Old | End::New | End::Latched) {
                self.renew();
            }
            report.add(Row { case: case.name, step: case.step, fault: case.fault, end, detail, time: begun.elapsed() });
        }
        self.go(State::Bare);
    }

    /// What others need of its host.
    pub fn lend(&self) -> Lent {
        Lent { n: self.host.n, shell: self.host.guest.shell() }
    }

    fn run_one(&mut self, case: &Case) -> (End, String) {
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            self.go(case.start);
            let state = (case.run)(self);
            self.judge(case, state)
        }));
        attempt.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let log = catch_unwind(AssertUnwindSafe(|| self.host.log())).unwrap_or_default();
            (End::Failed, format!("{}\n{log}", text.unwrap_or_default()))
        })
    }

    /// Whether the host is in the state it is said to be in, and reached over its management interface.
    fn judge(&mut self, case: &Case, state: State) -> (End, String) {
        if let Err(why) = self.reachable() {
            return (End::Unreachable, format!("{why}\n{}", self.host.log()));
        }
        let now = self.host.snapshot();
        let differences = self.looks.get(&state).map(|look| look.differences(&now)).unwrap_or_default();
        if !differences.is_empty() {
            return (End::Between, format!("not as in {state:?}:\n{}\n{}", differences.join("\n"), self.host.log()));
        }
        self.looks.entry(state).or_insert(now);
        self.state = state;
        let end = match (case.latched, state == case.start) {
            (true, _) => End::Latched,
            (false, true) => End::Old,
            (false, false) => End::New,
        };
        (end, String::new())
    }

    /// From the peer: the host answers, and so does its agent on a new connection.
    pub fn reachable(&self) -> Result<(), String> {
        let out = self.way_in.shell.run(&ping(&format!("192.0.2.{}", self.host.n)));
        if out.status != 0 {
            return Err(format!("{} does not answer: {}{}", name(self.host.n), out.stdout, out.stderr));
        }
        self.wait(look(self.host.api(), true)).map(drop).map_err(|s| format!("the agent does not answer: {s}"))
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> Client {
        let _runtime = self.lab.runtime.enter();
        self.host.api().fresh()
    }

    /// Runs something to its end.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.lab.runtime.block_on(work)
    }

    /// What is asked for to bring the subject into a state.
    pub fn wish(&self, state: State) -> Wish {
        subject(self.host.n, state).map_or_else(|| Wish::Remove(SUBJECT.into()), Wish::Apply)
    }

    /// Brings the host into a state, without any fault.
    pub fn go(&mut self, state: State) {
        if self.state == state {
            return;
        }
        let wish = self.wish(state);
        self.change(&wish);
        self.state = state;
        let now = self.host.snapshot();
        let look = self.looks.entry(state).or_insert_with(|| now.clone());
        assert_eq!(look.differences(&now), [""; 0], "{state:?} looks otherwise than before");
    }

    /// Makes a change that must succeed.
    pub fn change(&self, wish: &Wish) -> v1::Operation {
        let result = self.wait(Drive::new(self.host.api()).carry(wish));
        succeeded(result)
    }

    /// Makes a change that must come to wait for its confirmation.
    pub fn applied(&self, drive: &Drive, wish: &Wish) -> v1::Operation {
        let result = self.wait(drive.applied(wish));
        let text = told(&result);
        result.ok().filter(waiting).unwrap_or_else(|| panic!("it should wait for its confirmation: {text}"))
    }

    /// The look of the host without the subject.
    pub fn bare(&self) -> &Snapshot {
        &self.looks[&State::Bare]
    }

    /// Fails unless the host is as it is without the subject.
    pub fn must_be_bare(&self, what: &str) {
        assert_eq!(self.bare().differences(&self.host.snapshot()), [""; 0], "{what}");
    }
}

/// The operation of a change that must have succeeded.
pub fn succeeded(result: Result<v1::Operation, Status>) -> v1::Operation {
    let text = told(&result);
    result.ok().filter(|op| op.state() == v1::OperationState::Succeeded).unwrap_or_else(|| panic!("it should have succeeded: {text}"))
}
