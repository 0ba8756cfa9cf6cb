//! SIGKILL between any two steps of a request and an install: the agent starts, with the old pair or the new one, and a renewal goes on.

use std::os::unix::process::ExitStatusExt;

use pvelet_agent::crash::NAMES;
use pvelet_controller::pki::{Lifetime, SigningRequest};

use super::*;

/// Every point, and which pass of it: one install puts three files in place.
fn points() -> Vec<String> {
    let passes = |name: &str| if name == "certificate.file_placed" { 3 } else { 1 };
    let of_certificates = NAMES.iter().filter(|name| name.starts_with("certificate."));
    of_certificates.flat_map(|name| (1..=passes(name)).map(move |n| format!("{name}:{n}"))).collect()
}

/// Asks, signs, and installs a certificate together with new CAs and lists; what the agent does not survive has no answer.
async fn renew(world: &World, client: &Client) -> Option<String> {
    let ask = v1::CreateSigningRequestRequest::default();
    let asked = client.agent.certificate().create_signing_request(ask).await.ok()?.into_inner();
    let request = SigningRequest::from_pem(&asked.request_pem).unwrap();
    let pki = &world.stack.pki;
    let signed = pki.ca.sign_host(&request, "pve1", "pve1", &["localhost"], &[], Lifetime::days(9)).unwrap();
    // Text that differs each time, so that all three files are replaced.
    let noise = format!("# {}\n", signed.serial);
    let install = v1::InstallCertificateRequest {
        certificate_pem: signed.cert_pem,
        ca_pem: Some(noise.clone() + pki.ca.cert_pem()),
        crl_pem: Some(noise + &fs::read_to_string(pki.dir.crl_path()).unwrap()),
        ..Default::default()
    };
    client.agent.certificate().install_certificate(install).await.ok()?;
    Some(signed.serial)
}

#[tokio::test]
async fn a_kill_between_any_two_steps_leaves_an_agent_that_starts() {
    let mut world = World::new(vec!["pve1"]);
    let names: Vec<_> = world.files("pve1").into_keys().collect();
    for point in points() {
        let before = world.served("pve1").await.serial;
        world.stack.agent("pve1").kill();
        world.stack.agent("pve1").start_with(&[("PVELET_CRASH_AT", point.as_str())]).unwrap();
        let client = world.admin("pve1");
        assert_eq!(renew(&world, &client).await, None, "{point}");
        let status = world.stack.agent("pve1").wait_exit();
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        let left = world.files("pve1");
        world.stack.agent("pve1").start();
        let served = world.served("pve1").await;
        // From the decision on it is the new one, before it the old one.
        let decided = left.contains_key(&format!("{}.install", names[0])) || point.starts_with("certificate.placed");
        assert_eq!(served.serial != before, decided, "{point}: {left:?}");
        let now: Vec<_> = world.files("pve1").into_keys().filter(|n| !n.ends_with(".next") && !n.ends_with(".new")).collect();
        assert_eq!(now, names, "{point}");
        let client = world.admin("pve1");
        let serial = renew(&world, &client).await.unwrap_or_else(|| panic!("{point}: {}", world.stack.agents["pve1"].log()));
        assert_eq!(world.served("pve1").await.serial, serial, "{point}");
        assert_eq!(world.files("pve1").into_keys().collect::<Vec<_>>(), names, "{point}: nothing is left");
    }
}
