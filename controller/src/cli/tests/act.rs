//! Commands that change something.

use super::*;

#[tokio::test]
async fn a_vm_is_found_by_name_vmid_or_uuid_and_its_uuid_is_sent() {
    let world = World::new(two_hosts()).await;
    for name in ["web-2", "200", "00000000-0000-4000-8000-000000000200", "00000000-0000-4000-8000-000000000200".to_uppercase().as_str()] {
        let ran = world.run(&["start", name]).await.expect(Exit::Ok);
        assert!(ran.out.contains("pve2: start of VM 200 (web-2): succeeded in 2.5 s\n"), "{}", ran.out);
    }
    world.run_with(&["start", "web-2"], None, |io| io.bars = true).await.expect(Exit::Ok);
    let requests = world.hosts[1].lock().requests.split_off(1);
    assert_eq!(requests, vec!["start_vm 200 00000000-0000-4000-8000-000000000200"; 4]);
}

#[tokio::test]
async fn what_is_ambiguous_missing_or_perhaps_elsewhere_is_told_apart() {
    let world = World::new(two_hosts()).await;
    let ran = world.run(&["stop", "twin"]).await.expect(Exit::Usage);
    for words in ["'twin' is ambiguous", "VMID 201 on pve2", "VMID 202 on pve2", "use the UUID"] {
        assert!(ran.err.contains(words), "{}", ran.err);
    }
    let ran = world.run(&["stop", "none"]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("no VM 'none' on pve1, pve2; pveletctl vms lists them"), "{}", ran.err);
    let ran = world.run(&["stop", "a_b"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("'a_b' is not a DNS name") && ran.err.contains("VMID or UUID"), "{}", ran.err);
    let ran = world.run(&["stop", "42"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("'42' is not a VMID: use 100 to 999999999"), "{}", ran.err);
    world.add_dead().await;
    let ran = world.run(&["stop", "none"]).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("not every host could be asked: dead: cannot connect"), "{}", ran.err);
    let ran = world.run(&["stop", "web-1"]).await.expect(Exit::Ok);
    assert!(ran.err.contains("warning: not looked at: dead"), "{}", ran.err);
    assert!(world.hosts.iter().map(|h| h.lock().requests.len()).sum::<usize>() == 1);
}

#[tokio::test]
async fn clone_sends_what_was_asked_for_and_starts_it() {
    let world = World::new(two_hosts()).await;
    world.hosts[0].lock().vms.push(vm(1000, "web-9", "pve1"));
    let keys = world.dir.path().join("keys.pub");
    fs::write(&keys, "# mine\nssh-ed25519 AAAA ann\n\nssh-ed25519 BBBB bob\n").unwrap();
    let keys = keys.display().to_string();
    let args = ["clone", "--host", "pve1", "--template", "9000", "--name", "web-9", "--full", "--storage", "local-lvm", "--memory", "4G"];
    let more =
        ["--cores", "4", "--nic", "bridge=vmbr0,vlan=70", "--nic", "bridge=vmbr1,index=0", "--user", "admin", "--ssh-key-file", &keys];
    let last = ["--ip", "nic=0,ip=10.7.0.5/24,gw=10.7.0.1", "--start", "--request-id", "r1", "--tenant", "team-a", "--pool", "lab"];
    let ran = world.run(&[&args[..], &more, &last].concat()).await.expect(Exit::Ok);
    assert_eq!(
        ran.out, "pve1: clone of VM 1000 (web-9): succeeded in 2.5 s\npve1: start of VM 1000 (web-9): succeeded in 2.5 s\n",
        "{}",
        ran.err
    );
    assert!(ran.err.contains("pve1: clone of VM 1000 (web-9): 0% waiting for storage lane\n"), "{}", ran.err);
    assert!(!ran.out.contains('\u{1b}') && !ran.err.contains('\u{1b}'));

    let state = world.hosts[0].lock();
    let request = state.clones[0].clone();
    let config = request.config.unwrap();
    assert_eq!(request.meta.unwrap(), v1::RequestMeta { tenant: "team-a".into(), request_id: "r1".into(), ..Default::default() });
    assert_eq!((request.vmid, request.storage.as_str(), request.pool.as_str()), (0, "local-lvm", "lab"));
    assert_eq!(request.mode, i32::from(v1::CloneMode::Full));
    assert_eq!((config.name.as_deref(), config.cores, config.memory_mib), (Some("web-9"), Some(4), Some(4096)));
    let nics = config.nics.unwrap().nics;
    assert_eq!(nics.iter().map(|n| (n.index, n.bridge.as_str(), n.vlan)).collect::<Vec<_>>(), [(0, "vmbr1", 0), (1, "vmbr0", 70)]);
    let init = config.cloud_init.unwrap();
    assert_eq!(init.ssh_keys, ["ssh-ed25519 AAAA ann", "ssh-ed25519 BBBB bob"]);
    assert_eq!((init.user.as_str(), init.ip_configs[0].gateway4.as_str()), ("admin", "10.7.0.1"));
    assert_eq!((config.tags, config.start_on_boot, config.description, config.sockets), (None, None, None, None));
    assert_eq!(state.requests[1], "start_vm 1000 00000000-0000-4000-8000-000000001000");
    assert_eq!(state.operations[1].request_id, "r1-start");
}

#[tokio::test]
async fn clone_sends_user_data_only_to_an_agent_that_knows_it() {
    let world = World::new(two_hosts()).await;
    let file = world.dir.path().join("controlplane.yaml");
    fs::write(&file, "token: s3cret").unwrap();
    let path = file.display().to_string();
    let args = ["clone", "--host", "pve1", "--template", "9000", "--name", "web-9", "--user-data", &path];
    let ran = world.run(&args).await.expect(Exit::Usage);
    assert!(ran.err.contains("--user-data: the agent there does not know user data; upgrade it"), "{}", ran.err);
    assert!(world.hosts[0].lock().clones.is_empty());
    world.hosts[0].lock().host.features.push("vm.user_data".into());
    let ran = world.run(&args).await.expect(Exit::Ok);
    assert!(!ran.out.contains("s3cret") && !ran.err.contains("s3cret"));
    let sent = world.hosts[0].lock().clones[0].clone();
    assert_eq!(sent.config.unwrap().cloud_init.unwrap().user_data, Some(b"token: s3cret".to_vec()));
    let beside = world.run(&[&args[..], &["--user", "ann"]].concat()).await.expect(Exit::Usage);
    assert!(beside.err.contains("--user"), "{}", beside.err);
    fs::write(&file, "").unwrap();
    let empty = world.run(&args).await.expect(Exit::Usage);
    assert!(empty.err.contains("it is empty"), "{}", empty.err);
}

#[tokio::test]
async fn clone_needs_to_know_where() {
    let world = World::new(two_hosts()).await;
    let ran = world.run(&["clone", "--template", "9000", "--name", "x"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("clone needs one host: give --host with pve1, pve2"), "{}", ran.err);
    assert!(world.hosts.iter().all(|h| h.lock().requests.is_empty()));
}

#[tokio::test]
async fn json_of_a_mutation_is_the_operation_and_nothing_else() {
    let world = World::new(two_hosts()).await;
    let ran = world.run(&["stop", "web-1", "db-1", "-o", "json"]).await.expect(Exit::Ok);
    assert!(ran.err.is_empty(), "{}", ran.err);
    let json = ran.json();
    let operations = json["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 2);
    assert_eq!(operations[0]["kind"], "stop_vm");
    assert_eq!(operations[0]["state"], "succeeded");
    assert_eq!(operations[0]["create_time"], "2027-01-15T08:00:00Z");
    assert_eq!(operations[0]["duration_ms"], 2500);
    assert_eq!(operations[0]["tenant"], "default");
    assert_eq!(json["errors"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_failed_operation_and_a_refused_call_name_the_reason() {
    let world = World::new(two_hosts()).await;
    let locked = refusal(Code::Aborted, "VM 100 is locked (backup); try again when the backup has ended", reason::VM_LOCKED, None);
    world.hosts[0].lock().ending = Ending::Failure(locked);
    let ran = world.run(&["stop", "web-1"]).await.expect(Exit::Failed);
    assert!(ran.out.is_empty(), "{}", ran.out);
    assert!(
        ran.err.contains("pve1: stop of VM 100 (web-1): VM 100 is locked (backup); try again when the backup has ended [ABORTED VM_LOCKED]; see pveletctl get op operations/"),
        "{}",
        ran.err
    );
    let json = world.run(&["stop", "db-1", "-o", "json"]).await.expect(Exit::Failed).json();
    assert_eq!(json["operations"][0]["error"]["reason"], "VM_LOCKED");

    let observe = refusal(Code::FailedPrecondition, "the agent only observes: set mode = \"manage\"", reason::OBSERVE_ONLY, None);
    world.hosts[0].lock().refusal = Some(observe);
    let ran = world.run(&["stop", "web-1"]).await.expect(Exit::Failed);
    assert!(ran.err.contains("set mode = \"manage\" [FAILED_PRECONDITION OBSERVE_ONLY]"), "{}", ran.err);
    let json = world.run(&["stop", "web-1", "web-2", "-o", "json"]).await.expect(Exit::Failed).json();
    assert_eq!(json["errors"][0]["reason"], "OBSERVE_ONLY");
    assert_eq!(json["operations"][0]["vmid"], 200, "what succeeds elsewhere is told");
}

#[tokio::test]
async fn the_same_request_id_acts_once() {
    let world = World::new(two_hosts()).await;
    for _ in 0..2 {
        world.run(&["start", "web-2", "--request-id", "once"]).await.expect(Exit::Ok);
    }
    assert_eq!(world.hosts[1].lock().requests.len(), 1);
    let ran = world.run(&["start", "web-2", "web-1", "--request-id", "once"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("--request-id names one request"), "{}", ran.err);
    let ran = world.run(&["start", "web-2", "--request-id", "a/b"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("--request-id") && ran.err.contains("'a/b' is not a request id"), "{}", ran.err);
}

#[tokio::test]
async fn waiting_ends_at_the_timeout_and_not_waiting_at_once() {
    let world = World::new(two_hosts()).await;
    world.hosts[0].lock().ending = Ending::Never;
    let ran = world.run(&["start", "web-1", "--timeout", "200ms"]).await.expect(Exit::StillRunning);
    assert!(ran.err.contains("it goes on; see pveletctl get op operations/"), "{}", ran.err);
    let ran = world.run(&["start", "db-1", "--no-wait"]).await.expect(Exit::Ok);
    assert!(ran.out.starts_with("pve1: start of VM 101 (db-1): accepted as operations/"), "{}", ran.out);

    let json = world.run(&["ops", "--active", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["operations"].as_array().unwrap().len(), 2);
    let name = json["operations"][0]["name"].as_str().unwrap().to_owned();
    let ran = world.run(&["op", "cancel", name.trim_start_matches("operations/")]).await.expect(Exit::Ok);
    assert!(ran.out.contains("cancelled"), "{}", ran.out);
    let ran = world.run(&["op", "cancel", &name]).await.expect(Exit::Failed);
    assert!(ran.err.contains("NOT_CANCELLABLE"), "{}", ran.err);
    let ran = world.run(&["ops"]).await.expect(Exit::Ok);
    assert!(ran.out.lines().count() == 3 && ran.out.contains("start_vm"), "{}", ran.out);
    world.run(&["get", "op", &name]).await.expect(Exit::Ok);
}

#[tokio::test]
async fn delete_asks_and_without_a_terminal_refuses() {
    let world = World::new(two_hosts()).await;
    let requests = || world.hosts[1].lock().requests.clone();
    let ran = world.run(&["delete", "web-2"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("give --yes"), "{}", ran.err);
    for answer in ["", "n\n", "what\n"] {
        let ran = world.run_with(&["delete", "web-2"], Some(answer), |_| {}).await.expect(Exit::Failed);
        assert!(ran.err.contains("VM 200 (web-2) on pve2, UUID 00000000") && ran.err.contains("nothing was deleted"), "{}", ran.err);
    }
    assert!(requests().is_empty());
    world.run_with(&["delete", "web-2"], Some("y\n"), |_| {}).await.expect(Exit::Ok);
    world.run(&["delete", "web-2", "--yes"]).await.expect(Exit::Ok);
    assert_eq!(requests(), vec!["delete_vm 200 00000000-0000-4000-8000-000000000200"; 2]);
}

#[tokio::test]
async fn following_survives_a_broken_connection() {
    let world = World::new(two_hosts()).await;
    let relay = world.relay().await;
    world.hosts[0].lock().ending = Ending::Never;
    let host = &world.hosts[0];
    let meanwhile = async {
        // The stream is open: the connection breaks, and the operation ends while nobody looks.
        while host.changed.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        relay.cut.notify_waiters();
        host.lock().operations[0].state = v1::OperationState::Succeeded.into();
    };
    let (ran, ()) = tokio::join!(world.run(&["start", "web-1"]), meanwhile);
    let ran = ran.expect(Exit::Ok);
    assert!(ran.out.contains("start of VM 100 (web-1): succeeded"), "{}", ran.out);
    assert_eq!(host.lock().requests.len(), 1);
}

#[tokio::test]
async fn a_request_whose_answer_is_lost_is_repeated_and_done_once() {
    let world = World::new(two_hosts()).await;
    let relay = world.relay().await;
    let host = &world.hosts[0];
    host.mute.send_replace(true);
    let meanwhile = async {
        while host.lock().requests.is_empty() {
            tokio::task::yield_now().await;
        }
        relay.cut.notify_waiters();
        host.mute.send_replace(false);
    };
    let (ran, ()) = tokio::join!(world.run(&["stop", "web-1"]), meanwhile);
    ran.expect(Exit::Ok);
    assert_eq!(host.lock().requests.len(), 1);
}

#[tokio::test]
async fn a_request_that_is_never_answered_says_how_to_find_out() {
    let world = World::new(two_hosts()).await;
    world.hosts[0].mute.send_replace(true);
    let ran = world.run(&["stop", "web-1", "--deadline", "2s", "--request-id", "r7"]).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("no answer within 2 s") && ran.err.contains("repeat it with --request-id r7"), "{}", ran.err);
    world.hosts[0].mute.send_replace(false);
    world.run(&["stop", "web-1", "--request-id", "r7"]).await.expect(Exit::Ok);
    assert_eq!(world.hosts[0].lock().requests.len(), 1);
}

#[tokio::test]
async fn a_new_lease_is_accepted_on_every_host_and_only_after_a_yes() {
    let world = World::new(two_hosts()).await;
    let lease = "3ce39e16-a6d8-4c28-ab96-a142978c9cd2";
    let args = ["accept-controller", "main", "--lease", lease];
    let ran = world.run(&args).await.expect(Exit::Usage);
    assert!(ran.err.contains("give --yes"), "{}", ran.err);
    world.run_with(&args, Some("n\n"), |_| {}).await.expect(Exit::Failed);
    world.run(&["accept-controller", "main", "--lease", "x", "--yes"]).await.expect(Exit::Usage);
    assert!(world.hosts.iter().all(|h| h.lock().requests.is_empty()));

    let ran = world.run_with(&args, Some("y\n"), |_| {}).await.expect(Exit::Ok);
    assert!(ran.out.contains(&format!("pve2: controller 'main' accepted with lease {lease} (was not known)\n")), "{}", ran.out);
    assert!(world.hosts.iter().all(|h| h.lock().requests == [format!("accept_controller main {lease} 1")]));

    world.add_dead().await;
    let json = world.run(&[&args[..], &["--yes", "-o", "json"]].concat()).await.expect(Exit::Partial).json();
    assert_eq!(json["accepted"][1]["now"]["lease_uid"], lease);
    assert_eq!(json["errors"][0]["host"], "dead");
}
