//! How hosts are, and mending them.

use pvelet_proto::v1::{CheckState, HealthCheck};

use super::*;
use crate::agents::fake::health::check;

const DIFF: &str = "--- a/config.toml\n+++ b/config.toml\n@@ -1 +1,2 @@\n [runc]\n+  runtime_type = \"io.containerd.runc.v2\"\n";

async fn world() -> World {
    World::new(two_hosts()).await
}

/// The default runtime of the first host lacks its type.
fn break_it(world: &World) {
    let health = &world.hosts[0].health;
    health.set(HealthCheck {
        seen: "/etc/containerd/config.toml:12: runtime 'runc' has no runtime_type".into(),
        subjects: vec!["/etc/containerd/config.toml".into()],
        repair: "edit /etc/containerd/config.toml".into(),
        ..check("containerd.runtime-type", CheckState::Failed)
    });
    health.set(check("containerd.sandbox", CheckState::Failed));
    health.lock().plan = v1::RepairPlan {
        checks: vec!["containerd.runtime-type".into(), "containerd.sandbox".into()],
        file: "/etc/containerd/config.toml".into(),
        file_diff: DIFF.into(),
        units: vec!["containerd.service".into()],
    };
}

fn calls(world: &World, host: usize) -> Vec<String> {
    world.hosts[host].health.lock().calls.clone()
}

#[tokio::test]
async fn health_lists_the_checks_of_all_hosts() {
    let world = world().await;
    break_it(&world);
    let ran = world.run(&["health"]).await.expect(Exit::Ok);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("HOST  CHECK                    STATE   FOR    SEEN"), "{}", ran.out);
    for want in [
        "pve1  containerd.runtime-type  failed  1m30s  /etc/containerd/config.toml:12: runtime 'runc' has no runtime_type\n",
        "pve2  containerd.runtime-type  ok      1m30s  -\n",
    ] {
        assert!(ran.out.contains(want), "{want}\n{}", ran.out);
    }
    assert!(!ran.out.contains("kubelet.healthz") && !ran.out.contains('\u{1b}'), "{}", ran.out);
    // Groups stand in the order in which one thing depends on the other.
    let at = |id: &str| ran.out.find(id).unwrap();
    assert!(at("containerd.sandbox") < at("host.quorum") && at("host.quorum") < at("net.source-line"), "{}", ran.out);
    let ran = world.run(&["health", "--all", "--group", "kubelet", "--host", "pve1"]).await.expect(Exit::Ok);
    assert!(ran.out.contains("kubelet.healthz  not applicable") && !ran.out.contains("containerd"), "{}", ran.out);
    let ran = world.run(&["health", "-o", "wide", "--host", "pve1"]).await.expect(Exit::Ok);
    for want in
        ["REMEDY", "containerd.sandbox matters", "put containerd.sandbox right", "edit /etc/containerd/config.toml", "2027-01-15T08:00:00Z"]
    {
        assert!(ran.out.contains(want), "{want}\n{}", ran.out);
    }
    let json = world.run(&["health", "-o", "json"]).await.expect(Exit::Ok).json();
    let (host, other) = (&json["hosts"][0], &json["hosts"][1]);
    assert_eq!((&host["state"], &other["state"], &host["repair"]["policy"]), (&"failed".into(), &"ok".into(), &"on_request".into()));
    assert_eq!((&host["checks"][1]["id"], &host["checks"][1]["state"]), (&"containerd.runtime-type".into(), &"failed".into()));
    assert_eq!(host["checks"][1]["seconds"], 90);
    let coloured = world.run_with(&["health"], None, |io| io.colour = true).await;
    assert!(coloured.out.contains("\u{1b}[31mpve1  containerd.runtime-type"), "{:?}", coloured.out);
    world.run(&["health", "--group", "kublet"]).await.expect(Exit::Usage);
    world.add_dead().await;
    world.run(&["health"]).await.expect(Exit::Partial);
}

#[tokio::test]
async fn doctor_tells_what_is_not_well_with_its_remedy_and_one_line_for_what_is() {
    let world = world().await;
    let ran = world.run(&["doctor"]).await.expect(Exit::Ok);
    assert_eq!(
        ran.out.lines().take(6).collect::<Vec<_>>(),
        [
            "pve1: ok",
            "  containerd  ok (2 ok)",
            "  kubelet     not applicable",
            "  host        ok (1 ok)",
            "  network     ok (1 ok)",
            "  agent       ok (1 ok)"
        ]
    );
    assert_eq!(ran.out.lines().last(), Some("12 checks, 10 ok, 2 not applicable"));
    break_it(&world);
    let ran = world.run(&["doctor", "pve1"]).await.expect(Exit::Critical);
    let want = "\
pve1: failed
  containerd  failed (1 ok, 2 failed)
    containerd.runtime-type: failed for 1m30s
      seen:   /etc/containerd/config.toml:12: runtime 'runc' has no runtime_type
      why:    containerd.runtime-type matters
      remedy: put containerd.runtime-type right
      mend:   pveletctl repair containerd.runtime-type --host pve1  (edit /etc/containerd/config.toml)
    containerd.sandbox: failed for 1m30s
      seen:   containerd.sandbox is not as it should be
      why:    containerd.sandbox matters
      remedy: put containerd.sandbox right
  kubelet     not applicable
  host        ok (1 ok)
  network     ok (1 ok)
  agent       ok (1 ok)
7 checks, 4 ok, 2 failed, 1 not applicable
";
    assert_eq!(ran.out, want);
    let ran = world.run_with(&["doctor"], None, |io| io.colour = true).await;
    assert!(ran.out.contains("\u{1b}[31mpve1: failed\u{1b}[0m") && ran.out.contains("\u{1b}[32mpve2: ok\u{1b}[0m"), "{:?}", ran.out);
    let json = world.run(&["doctor", "-o", "json"]).await.expect(Exit::Critical).json();
    assert_eq!(json["hosts"][0]["checks"][2]["id"], "containerd.sandbox");
}

#[tokio::test]
async fn the_exit_status_of_doctor_is_that_of_the_worst() {
    let world = world().await;
    for (state, exit) in [
        (CheckState::Degraded, Exit::Failed),
        (CheckState::Unknown, Exit::Failed),
        (CheckState::Failed, Exit::Critical),
        (CheckState::NotApplicable, Exit::Ok),
    ] {
        world.hosts[1].health.set(check("host.storages", state));
        world.run(&["doctor"]).await.expect(exit);
        world.run(&["doctor", "pve1"]).await.expect(Exit::Ok);
    }
    // Before every check has run.
    world.hosts[1].health.lock().health.state = CheckState::Unknown.into();
    world.run(&["doctor"]).await.expect(Exit::Failed);
    // An agent of before.
    world.hosts[0].health.lock().old = true;
    let ran = world.run(&["doctor", "pve1"]).await.expect(Exit::Failed);
    assert!(ran.err.contains("pve1: the agent does not tell its host's health yet; upgrade pvelet-agent"), "{}", ran.err);
    assert_eq!(ran.out, "0 checks, 0 ok; 1 of 1 hosts told nothing\n");
    world.add_dead().await;
    let ran = world.run(&["doctor"]).await.expect(Exit::Critical);
    assert!(ran.err.contains("dead: cannot connect") && ran.out.ends_with("; 2 of 3 hosts told nothing\n"), "{}\n{}", ran.out, ran.err);
    world.run(&["doctor", "pve7"]).await.expect(Exit::NotFound);
    // A mistake of the caller's is nothing that was found.
    world.run(&["doctor", "--pve1"]).await.expect(Exit::Usage);
    assert_eq!([Exit::Failed, Exit::Critical, Exit::Usage].map(|exit| exit as u8), [1, 2, 64]);
}

#[tokio::test]
async fn checks_are_run_on_request() {
    let world = world().await;
    let ran = world.run(&["check", "run", "containerd", "host.quorum", "--host", "pve1"]).await.expect(Exit::Ok);
    assert_eq!(ran.out.lines().count(), 4, "{}", ran.out);
    assert_eq!(calls(&world, 0), ["run containerd host.quorum"]);
    let ran = world.run(&["check", "run", "host.quorom"]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("there is no check 'host.quorom' here"), "{}", ran.err);
    let ran = world.run(&["check", "run", "Host Quorum"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("'Host Quorum' is not a check: use an id such as"), "{}", ran.err);
    world.run(&["doctor", "--run"]).await.expect(Exit::Ok);
    assert_eq!(calls(&world, 1)[1..], ["run agent containerd host kubelet network"]);
}

#[tokio::test]
async fn doctor_shows_what_is_known_where_checks_do_not_come_to_their_end() {
    let world = world().await;
    break_it(&world);
    world.hosts[0].health.lock().hanging = true;
    let args = ["doctor", "--run"];
    let hung = async {
        // The time goes on by itself once nothing else happens.
        while calls(&world, 0).is_empty() || calls(&world, 1).is_empty() {
            tokio::task::yield_now().await;
        }
        tokio::time::pause();
    };
    let (ran, ()) = tokio::join!(world.run(&args), hung);
    let ran = ran.expect(Exit::Critical);
    assert!(ran.err.contains("pve1: not all checks came to their end within 60 s; shown is what is known\n"), "{}", ran.err);
    assert!(!ran.err.contains("pve2"), "{}", ran.err);
    for want in ["pve1: failed\n", "\n    containerd.runtime-type: failed for 1m30s\n", "\npve2: ok\n"] {
        assert!(ran.out.contains(want), "{want}\n{}", ran.out);
    }
}

#[tokio::test]
async fn a_repair_shows_its_plan_asks_and_tells_how_the_checks_are_afterwards() {
    let world = world().await;
    break_it(&world);
    let dry = world.run(&["repair", "containerd.runtime-type", "--host", "pve1", "--dry-run"]).await.expect(Exit::Ok);
    let plan = "\
pve1: repair of containerd.runtime-type, and of containerd.sandbox
/etc/containerd/config.toml:
  --- a/config.toml
  +++ b/config.toml
  @@ -1 +1,2 @@
   [runc]
  +  runtime_type = \"io.containerd.runc.v2\"
To be restarted: containerd.service
";
    assert_eq!(dry.out, plan);
    let args = ["repair", "containerd-config", "--host", "pve1"];
    let ran = world.run(&args).await.expect(Exit::Usage);
    assert!(ran.err.contains("repair asks before it acts"), "{}", ran.err);
    let ran = world.run_with(&args, Some("n\n"), |_| {}).await.expect(Exit::Failed);
    assert!(ran.err.contains(plan) && ran.err.contains("nothing was changed"), "{}", ran.err);
    assert!(calls(&world, 0).is_empty());
    let ran = world.run_with(&args, Some("y\n"), |_| {}).await.expect(Exit::Ok);
    assert_eq!(
        ran.out,
        "pve1: repair of containerd.runtime-type: succeeded in 1.0 s\n  containerd.runtime-type  ok  mended\n  containerd.sandbox  ok  mended\n"
    );
    assert_eq!(calls(&world, 0), ["repair containerd.runtime-type"]);
    let ops = world.run(&["ops", "--host", "pve1"]).await.expect(Exit::Ok);
    assert!(ops.out.contains("repair") && ops.out.contains("containerd.runtime-type"), "{}", ops.out);
    let ran = world.run(&[&args[..], &["--yes"]].concat()).await.expect(Exit::NotFound);
    assert!(ran.err.contains("pve1: containerd's configuration is well: there is nothing to mend"), "{}", ran.err);
    world.run(&["repair", "containerd.unit", "--yes"]).await.expect(Exit::Usage);
    world.run(&["repair", "--yes", "--host", "pve1"]).await.expect(Exit::Usage);
}

#[tokio::test]
async fn a_repair_that_is_refused_or_undone_says_why() {
    let world = world().await;
    break_it(&world);
    let args = ["repair", "containerd.runtime-type", "--host", "pve1", "--yes"];
    world.hosts[0].health.lock().refusal = Some(refusal(Code::FailedPrecondition, "[repair] policy is \"off\"", reason::REPAIR_OFF, None));
    let ran = world.run(&args).await.expect(Exit::Failed);
    assert!(ran.err.contains("[repair] policy is \"off\" [FAILED_PRECONDITION REPAIR_OFF]"), "{}", ran.err);
    world.hosts[0].health.lock().refusal = None;
    world.hosts[0].health.lock().useless = true;
    let ran = world.run(&[&args[..], &["-o", "json"]].concat()).await.expect(Exit::Failed);
    assert_eq!(ran.json()["operation"]["state"], "failed");
    assert!(ran.err.contains("the check did not get better; what was changed is undone"), "{}", ran.err);
    let ran = world.run(&["repair", "host.quorum", "--host", "pve1", "--yes"]).await.expect(Exit::Failed);
    assert!(ran.err.contains("nothing is known that mends host.quorum"), "{}", ran.err);
    world.hosts[0].health.set(HealthCheck { repair: String::new(), ..check("containerd.runtime-type", CheckState::Failed) });
    let ran = world.run(&["repair", "containerd-config", "--host", "pve1", "--yes"]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("nothing is known that mends containerd.runtime-type") && ran.err.contains("put containerd."), "{}", ran.err);
}

#[tokio::test]
async fn the_latch_of_repairs_is_told_and_cleared_when_a_person_says_so() {
    let world = world().await;
    let clear = ["repair", "--clear", "--host", "pve1"];
    let ran = world.run_with(&clear, Some("y\n"), |_| {}).await.expect(Exit::NotFound);
    assert!(ran.err.contains("repairs are not latched"), "{}", ran.err);
    let latched = |fake: &FakeAgent| {
        let mut host = fake.health.lock();
        let repair = host.health.repair.as_mut().unwrap();
        (repair.latched, repair.latch_reason) = (true, "two repairs have failed".into());
    };
    latched(&world.hosts[0]);
    let ran = world.run(&["doctor", "pve1"]).await.expect(Exit::Ok);
    assert!(ran.out.contains("two repairs have failed; look at the host, then pveletctl repair --clear --host pve1"), "{}", ran.out);
    world.run(&clear).await.expect(Exit::Usage);
    world.run_with(&clear, Some("n\n"), |_| {}).await.expect(Exit::Failed);
    assert!(calls(&world, 0).is_empty());
    let ran = world.run_with(&clear, Some("y\n"), |_| {}).await.expect(Exit::Ok);
    assert_eq!(ran.out, "pve1: cleared; it may be repaired again\n");
    assert_eq!(calls(&world, 0), ["clear"]);
}

#[tokio::test]
async fn watching_tells_what_is_not_well_and_then_what_changes_each_once() {
    let world = Arc::new(world().await);
    break_it(&world);
    let watching = {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.run(&["health", "--watch", "--count", "4", "--host", "pve1"]).await })
    };
    let health = world.hosts[0].health.clone();
    while !health.watched() {
        tokio::task::yield_now().await;
    }
    // What is told again after the stream broke is no change.
    health.cut();
    while health.watched() {
        tokio::task::yield_now().await;
    }
    while !health.watched() {
        tokio::task::yield_now().await;
    }
    health.set(check("host.storages", CheckState::NotApplicable));
    health.set(check("containerd.sandbox", CheckState::Ok));
    health.set(check("containerd.responding", CheckState::Unknown));
    let ran = watching.await.unwrap().expect(Exit::Ok);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(
        lines[0],
        "2027-01-15T08:00:00Z  pve1  containerd.runtime-type  failed  /etc/containerd/config.toml:12: runtime 'runc' has no runtime_type"
    );
    assert!(lines[1].contains("containerd.sandbox  failed  containerd.sandbox is not"), "{}", ran.out);
    let mut rest = [lines[2], lines[3]];
    rest.sort_unstable();
    assert!(rest[0].contains("containerd.responding  unknown (was ok)  containerd.responding is not"), "{}", ran.out);
    assert!(rest[1].contains("containerd.sandbox  ok (was failed)"), "{}", ran.out);
    world.hosts[0].health.lock().old = true;
    let ran = world.run(&["health", "--watch", "--host", "pve1"]).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("upgrade pvelet-agent there [UNIMPLEMENTED]; given up"), "{}", ran.err);
}
