use super::*;
use crate::{
    health::{Mend, State},
    host::{pve::fake::FakePve, units_fake::FakeUnits},
};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn ago(seconds: u64) -> Option<SystemTime> {
    Some(now() - Duration::from_secs(seconds))
}

fn no_bus() -> Result<UnitState, Error> {
    Err(Error::Look { trouble: Trouble::Missing, message: "there is no system bus".into() })
}

fn not_found() -> UnitState {
    UnitState { load: "not-found".into(), active: "inactive".into(), ..UnitState::default() }
}

fn off() -> UnitState {
    UnitState { active: "inactive".into(), sub: "dead".into(), enabled: "disabled".into(), ..FakeUnits::running() }
}

fn starting() -> UnitState {
    UnitState { active: "activating".into(), sub: "start".into(), since: ago(5), ..FakeUnits::running() }
}

#[test]
fn pvedaemon_must_answer_whatever_systemd_says() {
    let refused = || Answer::No("127.0.0.1:85: connection refused".into());
    let table = [
        (Answer::Yes, Ok(FakeUnits::running()), State::Ok, false),
        (Answer::Yes, no_bus(), State::Ok, false),
        (refused(), Ok(FakeUnits::dead()), State::Failed, true),
        (refused(), Ok(off()), State::Failed, false),
        (refused(), Ok(starting()), State::Unknown, false),
        (refused(), no_bus(), State::Failed, false),
        (refused(), Ok(not_found()), State::NotApplicable, false),
        // Its tasks would be ended with it.
        (refused(), Ok(FakeUnits::running()), State::Failed, false),
        (Answer::Silent(1), Ok(FakeUnits::running()), State::Unknown, false),
        (Answer::Silent(SILENT_LOOKS), Ok(FakeUnits::running()), State::Failed, false),
        (Answer::Silent(1), Ok(FakeUnits::dead()), State::Failed, true),
    ];
    for (answer, state, expected, mends) in table {
        let found = decide_daemon(&answer, &state, now());
        assert_eq!(
            (found.state, found.mend == Some(Mend::RestartUnit(PVEDAEMON.into()))),
            (expected, mends),
            "{answer:?} {state:?}: {found:?}"
        );
    }
}

#[tokio::test]
async fn any_answer_is_an_answer() {
    let (pve, silent) = (FakePve::new("a"), AtomicU32::new(3));
    assert_eq!(ask(&pve, &silent).await, Answer::Yes);
    assert_eq!(silent.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn silence_is_counted_until_an_answer_comes() {
    let (pve, silent) = (FakePve::new("a"), AtomicU32::new(0));
    pve.freeze(crate::host::pve::fake::Freeze::Before(0));
    assert_eq!(ask(&pve, &silent).await, Answer::Silent(1));
    assert_eq!(ask(&pve, &silent).await, Answer::Silent(2));
    pve.thaw();
    assert_eq!(ask(&pve, &silent).await, Answer::Yes);
    assert_eq!(silent.load(Ordering::Relaxed), 0);
}

#[test]
fn pvestatd_must_run_and_tell() {
    let runs = |seconds| Ok(UnitState { since: ago(seconds), ..FakeUnits::running() });
    let missing = || Err(Error::Look { trouble: Trouble::Missing, message: ".rrd is not there".into() });
    let silent = || Err(Error::Look { trouble: Trouble::Silent, message: "/etc/pve did not answer within 3 s".into() });
    let table = [
        ("told", Ok(ago(8)), runs(9000), ago(9000), State::Ok),
        ("late", Ok(ago(100)), runs(9000), ago(9000), State::Ok),
        ("wedged", Ok(ago(200)), runs(9000), ago(9000), State::Failed),
        ("just restarted", Ok(ago(200)), runs(5), ago(9000), State::Ok),
        ("forgotten", Ok(None), runs(9000), ago(9000), State::Failed),
        ("fresh host", Ok(None), runs(60), ago(60), State::Ok),
        ("the cluster file system was restarted", Ok(None), runs(9000), ago(5), State::Ok),
        ("since when it runs is not known", Ok(None), Ok(UnitState { since: None, ..FakeUnits::running() }), None, State::Ok),
        ("a clock that was set back", Ok(Some(now() + Duration::from_secs(500))), runs(9000), ago(9000), State::Ok),
        ("nothing is kept", missing(), runs(9000), ago(9000), State::Ok),
        ("the cluster file system hangs", silent(), runs(9000), ago(9000), State::Unknown),
        ("dead", Ok(ago(8)), Ok(FakeUnits::dead()), ago(9000), State::Failed),
        ("off", Ok(None), Ok(off()), ago(9000), State::Failed),
        ("no PVE", missing(), Ok(not_found()), None, State::NotApplicable),
        ("no systemd", Ok(ago(8)), no_bus(), None, State::Unknown),
    ];
    for (name, told, state, kept_since, expected) in table {
        let found = decide_status(&told, &state, kept_since, now());
        assert_eq!(found.state, expected, "{name}: {found:?}");
    }
    let mends = |state| decide_status(&Ok(ago(400)), &state, ago(9000), now()).mend;
    assert_eq!(mends(runs(9000)), Some(Mend::RestartUnit(PVESTATD.into())));
    assert_eq!(mends(Ok(FakeUnits::dead())), Some(Mend::RestartUnit(PVESTATD.into())));
    assert_eq!(mends(Ok(off())), None);
}

#[test]
fn pveproxy_may_be_switched_off_on_purpose() {
    let table = [
        (Ok(FakeUnits::running()), State::Ok),
        (Ok(FakeUnits::dead()), State::Failed),
        (Ok(off()), State::NotApplicable),
        (Ok(UnitState { load: "masked".into(), enabled: "masked".into(), ..off() }), State::NotApplicable),
        (Ok(starting()), State::Ok),
        (Ok(UnitState { sub: "auto-restart".into(), ..starting() }), State::Failed),
        (Ok(not_found()), State::NotApplicable),
        (no_bus(), State::Unknown),
    ];
    for (state, expected) in table {
        assert_eq!(decide_proxy(&state, now()).state, expected, "{state:?}");
    }
}
