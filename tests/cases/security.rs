//! Who may do what, through a real agent: every method for every kind of client, revocation, a new CA, and tenants.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use pve_sim::control::{Request, Seed};
use pvelet_agent::auth::roles;
use pvelet_controller::{
    pki::{Ca, Issued, Lifetime, PkiDir, write_public},
    tls::{CredentialFiles, Credentials},
};
use pvelet_proto::{identity::Role, v1::VmEventType as Kind};
use pvelet_tests::{
    Agent, Client, HostEvents, OperationEvents, Pki, Stack, StackOptions,
    agent::SOON,
    calls::{Refusal, metadata, succeeded},
    client::{reason, vm_ref},
    pki::TRUST_DOMAIN,
    program,
    raw::{Raw, hears_nobody, methods},
};
use tokio::time::timeout;
use tonic::{Code, Status};

fn seeded() -> Stack {
    Stack::seeded(StackOptions::default(), |control| {
        let seed = |vmid, name: &str| Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", vmid, name) };
        control.call(&Request::SeedTemplate(seed(9000, "template"))).unwrap();
        control.call(&Request::SeedVm(seed(200, "plain"))).unwrap();
    })
}

/// Credentials that trust the stack's CA, whoever issued the certificate itself.
fn as_client(pki: &Pki, issued: &Issued) -> Credentials {
    Credentials::from_pem(pki.ca.cert_pem(), &issued.cert_pem, &issued.key_pem).unwrap()
}

/// Whether a status is the gate's refusal of the role.
fn turned_away(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && reason(status) == "ROLE"
}

#[tokio::test]
async fn every_method_is_open_to_whom_the_table_says_and_to_nobody_else() {
    let stack = seeded();
    let agent: &Agent = &stack.agents["pve1"];
    let (pki, day) = (&stack.pki, Lifetime::days(1));
    let methods = methods();
    assert!(methods.len() >= roles::TABLE.len(), "{methods:?}");
    for rule in roles::TABLE {
        assert!(methods.iter().any(|m| m == rule.path), "{} is in the table and not offered", rule.path);
    }
    let roles = [Role::Reader, Role::Operator, Role::Admin];
    for role in roles {
        let client = Raw::connect(agent, &as_client(pki, &pki.ca.issue_role(role, "x", day).unwrap())).await.unwrap();
        for path in &methods {
            let rule = roles::TABLE.iter().find(|r| r.path == path).unwrap_or_else(|| panic!("{path} is not in the table"));
            let status = client.call(path).await;
            assert_eq!(turned_away(&status), role < rule.role, "{role} at {path}: {status:?}");
            assert_ne!(status.code(), Code::Unimplemented, "{path}");
        }
        let status = client.call("/pvelet.v1.VmService/NoSuchMethod").await;
        assert!(turned_away(&status), "{status:?}");
    }
    let client = Raw::connect(agent, &as_client(pki, &pki.ca.issue_tenant("team-a", "x", day).unwrap())).await.unwrap();
    for path in &methods {
        let rule = roles::TABLE.iter().find(|r| r.path == path).unwrap();
        let status = client.call(path).await;
        assert_eq!(turned_away(&status), !rule.tenants, "a tenant at {path}: {status:?}");
    }
}

#[tokio::test]
async fn who_has_no_good_certificate_is_not_heard_at_all() {
    let stack = seeded();
    let agent: &Agent = &stack.agents["pve1"];
    let (pki, day) = (&stack.pki, Lifetime::days(1));
    let now = SystemTime::now();
    let minutes = |n: u64| std::time::Duration::from_secs(n * 60);
    let other = Ca::create(TRUST_DOMAIN, Lifetime::days(30)).unwrap();
    let elsewhere = Ca::create("elsewhere.test", Lifetime::days(30)).unwrap();
    let expired = Lifetime { not_before: now - minutes(20), not_after: now - minutes(10) };
    let future = Lifetime { not_before: now + minutes(10), not_after: now + minutes(20) };
    let revoked = pki.ca.issue_role(Role::Admin, "revoked", day).unwrap();
    pki.deliver(&revoked);
    // Before the agent's next look at its files: its list is read again by itself.
    pki.dir.revoke(&revoked.serial, now).unwrap();
    let host = pki.ca.issue_host(&agent.cluster, "pve1", &["localhost"], &[], day).unwrap();
    let cases = [
        ("another CA of the same name", other.issue_role(Role::Admin, "x", day).unwrap()),
        ("another trust domain", elsewhere.issue_role(Role::Admin, "x", day).unwrap()),
        ("expired", pki.ca.issue_role(Role::Admin, "x", expired).unwrap()),
        ("not yet valid", pki.ca.issue_role(Role::Admin, "x", future).unwrap()),
        ("a server's certificate", host),
    ];
    for (what, issued) in &cases {
        // Whoever connects waits a second for the refusal; one that comes later ends the connection at its first call.
        if let Ok(raw) = Raw::connect(agent, &as_client(pki, issued)).await {
            let status = raw.call("/pvelet.v1.HostService/GetHost").await;
            assert!(status.code() == Code::Unavailable && reason(&status).is_empty(), "{what} is heard: {status:?}");
        }
        // Through the client that people use, each method.
        let client = Client::new(agent, as_client(pki, issued));
        let status = client.host().await.unwrap_err();
        assert_eq!(reason(&status), "", "{what}: {status:?}");
    }
    // The list is taken over within a second; until then it still opens.
    let denied = async { while Raw::connect(agent, &as_client(pki, &revoked)).await.is_ok() {} };
    timeout(SOON, denied).await.expect("a revoked certificate is heard");
    assert!(hears_nobody(agent.address, pki).await, "somebody without a certificate is heard");
    assert!(stack.operator("pve1").host().await.is_ok());
}

#[tokio::test]
async fn the_streams_of_a_revoked_client_end() {
    let stack = seeded();
    let (cert, key) = stack.pki.role(Role::Operator, "mallory");
    let mallory = Client::new(&stack.agents["pve1"], stack.pki.credentials((cert, key)));
    let honest = stack.operator("pve1");
    let mut theirs = HostEvents::open(&mallory).await;
    let mut operations = OperationEvents::open(&mallory, 0).await;
    let mut ours = HostEvents::open(&honest).await;
    let dir = stack.pki.dir.ca_cert_path().parent().unwrap().display().to_string();
    let who = format!("spiffe://{TRUST_DOMAIN}/role/operator/mallory");
    let revoked = Command::new(program("pveletctl")).args(["pki", "revoke", &who, "--dir", &dir]).output().unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    theirs.ended().await;
    while operations.next().await.is_ok() {}
    assert!(mallory.host().await.is_err(), "a new connection is refused, too");
    // Nobody else noticed.
    stack.sim.control().call(&Request::StartGuest { vmid: 200 }).unwrap();
    ours.until(Kind::Started, 200).await;
}

/// Replaces a file in one step, as a careful administrator does.
fn put(path: &Path, text: &str) {
    write_public(path, text.as_bytes(), true).unwrap();
}

fn put_pair((cert, key): &(std::path::PathBuf, std::path::PathBuf), issued: &Issued) {
    // In between the two do not fit together, and the last good pair stays in use.
    pvelet_controller::pki::write_private(key, issued.key_pem.as_bytes(), true).unwrap();
    put(cert, &issued.cert_pem);
}

/// Calls without a pause until told to stop, each over a connection of its own; returns how many.
fn load(stack: &Stack, files: CredentialFiles, stop: &Arc<AtomicBool>, done: &Arc<AtomicUsize>) -> tokio::task::JoinHandle<Vec<String>> {
    let (stop, done) = (Arc::clone(stop), Arc::clone(done));
    let agent = &stack.agents["pve1"];
    let credentials = Credentials::load(files).unwrap();
    let make = {
        let template = Client::new(agent, credentials.clone());
        let target = template.agent.target().clone();
        move || pvelet_controller::agents::Agents::new(credentials.clone(), Default::default()).set(target.clone())
    };
    tokio::spawn(async move {
        let mut failures = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            match make().get_host().await {
                Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    })
}

async fn more_calls(done: &AtomicUsize, n: usize) {
    let target = done.load(Ordering::Relaxed) + n;
    let wait = async {
        while done.load(Ordering::Relaxed) < target {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(pvelet_tests::agent::SOON, wait).await.expect("calls go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_ca_under_load_drops_no_call() {
    let stack = seeded();
    let old = &stack.pki;
    let (new_dir, new) = PkiDir::init(&stack.dir.path().join("new-pki"), TRUST_DOMAIN, Lifetime::days(30), false).unwrap();
    let client = old.role(Role::Reader, "rotating");
    let files = CredentialFiles { ca: old.dir.ca_cert_path(), cert: client.0.clone(), key: client.1.clone() };
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..2).map(|_| load(&stack, files.clone(), &stop, &done)).collect();
    more_calls(&done, 20).await;

    // Both CAs, here and there (agents and clients share the file in this stack), then both lists.
    let (old_ca, old_crl) = (old.ca.cert_pem().to_owned(), fs::read_to_string(old.dir.crl_path()).unwrap());
    put(&old.dir.ca_cert_path(), &format!("{old_ca}{}", new.cert_pem()));
    wait_for_log(&stack, &new_client(&stack, &new)).await;
    put(&old.dir.crl_path(), &format!("{old_crl}{}", fs::read_to_string(new_dir.crl_path()).unwrap()));
    more_calls(&done, 20).await;

    // New certificates, while the old ones are still good.
    let agent = &stack.agents["pve1"];
    let own = new.issue_host(&agent.cluster, "pve1", &["localhost"], &[[127, 0, 0, 1].into()], Lifetime::days(20)).unwrap();
    put_pair(agent.cert(), &own);
    // Whoever takes the old CA out before every host shows its new certificate cuts himself off.
    let probe = Client::new(agent, new_client(&stack, &new));
    let shown = async { while probe.agent.served_certificate().await.unwrap().serial != own.serial {} };
    tokio::time::timeout(pvelet_tests::agent::SOON, shown).await.expect("the agent shows its new certificate");
    more_calls(&done, 20).await;
    put_pair(&client, &new.issue_role(Role::Reader, "rotating", Lifetime::days(2)).unwrap());
    more_calls(&done, 20).await;

    // The old CA goes: first its list, then itself.
    let before = old.ca.issue_role(Role::Reader, "late", Lifetime::days(1)).unwrap();
    assert!(Raw::connect(agent, &both(&stack, &new, &before)).await.is_ok());
    put(&old.dir.crl_path(), &fs::read_to_string(new_dir.crl_path()).unwrap());
    put(&old.dir.ca_cert_path(), new.cert_pem());
    let refused = async { while Raw::connect(agent, &both(&stack, &new, &before)).await.is_ok() {} };
    tokio::time::timeout(pvelet_tests::agent::SOON, refused).await.expect("the old CA is no longer trusted");
    more_calls(&done, 20).await;
    stop.store(true, Ordering::Relaxed);
    for call in calls {
        assert_eq!(call.await.unwrap(), Vec::<String>::new());
    }
}

/// Credentials that trust both CAs.
fn both(stack: &Stack, new: &Ca, issued: &Issued) -> Credentials {
    let roots = format!("{}{}", stack.pki.ca.cert_pem(), new.cert_pem());
    Credentials::from_pem(&roots, &issued.cert_pem, &issued.key_pem).unwrap()
}

fn new_client(stack: &Stack, new: &Ca) -> Credentials {
    both(stack, new, &new.issue_role(Role::Reader, "probe", Lifetime::days(1)).unwrap())
}

/// Until the agent takes clients of the new CA.
async fn wait_for_log(stack: &Stack, probe: &Credentials) {
    let heard = async { while Raw::connect(&stack.agents["pve1"], probe).await.is_err() {} };
    tokio::time::timeout(pvelet_tests::agent::SOON, heard).await.expect("the new CA is trusted");
}

#[tokio::test]
async fn tenants_see_and_touch_only_what_is_theirs() {
    let stack = seeded();
    let (a, b) = (stack.tenant("pve1", "team-a"), stack.tenant("pve1", "team-b"));
    let operator = stack.operator("pve1");
    let (mut events_a, mut events_b) = (HostEvents::open(&a).await, HostEvents::open(&b).await);
    assert!(events_a.existing.is_empty(), "nobody's VMs are not a tenant's: {:?}", events_a.existing);
    let of_a = a.cloned("one", 9000, "of-a").await;
    let of_b = b.cloned("one", 9000, "of-b").await;
    assert_eq!(of_a.mark.as_ref().unwrap().owner.as_ref().unwrap().tenant, "team-a");

    for (tenant, own, other) in [(&a, &of_a, &of_b), (&b, &of_b, &of_a)] {
        assert_eq!(tenant.all_vms().await.iter().map(|vm| vm.vmid).collect::<Vec<_>>(), [own.vmid]);
        assert!(tenant.vm(own.vmid).await.is_ok());
        for vmid in [other.vmid, 200, 9000] {
            let status = tenant.vm(vmid).await.unwrap_err();
            assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "VM_NOT_FOUND"), "VM {vmid}");
        }
        for (what, refusal) in tenant.refusals("foreign", &vm_ref(other)).await {
            refusal.is(Code::NotFound, "VM_NOT_FOUND", what);
        }
        // Whether it exists must not show: the answers to a foreign VM and to none at all are alike.
        let none = pvelet_proto::v1::VmRef { vmid: other.vmid + 5000, uuid: other.uuid.clone() };
        for (what, refusal) in tenant.refusals("absent", &none).await {
            refusal.is(Code::NotFound, "VM_NOT_FOUND", what);
        }
        // Nor may it speak for somebody else.
        let mut request = tenant.clone_request("as-other", 9000, "x");
        request.meta.as_mut().unwrap().tenant = "default".into();
        Refusal::of(tenant.clone_vm(request).await).is(Code::PermissionDenied, "SCOPE_TENANT", "clone for another tenant");
        let operations = tenant.agent.list_operations("", false, 100).await.unwrap();
        assert!(operations.iter().all(|op| op.tenant == tenant.tenant) && !operations.is_empty(), "{operations:?}");
    }
    // Operations of others do not exist, either.
    let theirs = operator.agent.list_operations("team-b", false, 10).await.unwrap().remove(0);
    let request = pvelet_proto::v1::GetOperationRequest { name: theirs.name.clone() };
    let status = a.agent.operation().get_operation(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "OPERATION_NOT_FOUND"));
    // The same request id of two tenants is two requests.
    assert_ne!(a.operation("one").await.unwrap().name, b.operation("one").await.unwrap().name);
    assert_ne!(of_a.vmid, of_b.vmid);

    // Each does with its own what it likes, and hears of nothing else.
    succeeded(a.start("start", &vm_ref(&of_a)).await);
    events_a.until(Kind::Started, of_a.vmid).await;
    succeeded(b.start("start", &vm_ref(&of_b)).await);
    events_b.until(Kind::Started, of_b.vmid).await;
    assert!(events_a.seen.iter().all(|e| e.vm.as_ref().unwrap().vmid == of_a.vmid), "{:?}", events_a.seen);
    assert!(events_b.seen.iter().all(|e| e.vm.as_ref().unwrap().vmid == of_b.vmid), "{:?}", events_b.seen);
    // An operator sees all, and touches a tenant's only in its name.
    assert_eq!(operator.all_vms().await.len(), 4);
    let status = operator.stop("stop", &vm_ref(&of_a)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "SCOPE_VM"), "{}", metadata(&status, "vmid"));
}
