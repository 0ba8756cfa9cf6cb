//! Connections that stand while their host's certificate is revoked.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use tokio::{task::spawn_blocking, time::sleep};

use crate::tls::{Connection, Credentials, Loaded};

/// How often the lists are looked at for each of them.
const LOOK: Duration = Duration::from_secs(30);

/// The certificates that the host has shown, its own first.
pub(super) fn shown(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let chain = connection.get_ref().1.peer_certificates().unwrap_or_default();
    chain.iter().map(|der| der.clone().into_owned()).collect()
}

/// Ends once the host's certificate is revoked.
pub(super) async fn revoked(credentials: Credentials, chain: Vec<CertificateDer<'static>>) {
    let mut seen: Option<Arc<Loaded>> = None;
    loop {
        sleep(LOOK).await;
        let files = credentials.clone();
        // The runtime ends, and this with it.
        let Ok(loaded) = spawn_blocking(move || files.current()).await else { continue };
        if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &loaded)) {
            continue;
        }
        if loaded.revokes(&chain) {
            return;
        }
        seen = Some(loaded);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, io::ErrorKind, time::SystemTime};

    use pvelet_proto::identity::Role;
    use rustls_pki_types::pem::PemObject;
    use tokio::{io::AsyncReadExt, time::timeout};

    use super::*;
    use crate::{
        agents::guard::Live,
        pki::{Ca, Crl, Lifetime},
        tls::{CredentialFiles, CrlFile},
    };

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_stands_ends_soon_after_its_hosts_certificate_is_revoked() {
        let (dir, day) = (tempfile::tempdir().unwrap(), Lifetime::days(1));
        let ca = Ca::create("pvelet.example", Lifetime::days(10)).unwrap();
        let [host, other] = [(); 2].map(|()| ca.issue_host("lab", "pve1", &[], &[], day).unwrap());
        let path = |name: &str| dir.path().join(name);
        fs::write(path("ca.crt"), ca.cert_pem()).unwrap();
        ca.issue_role(Role::Reader, "ann", day).unwrap().write(dir.path(), "me", false).unwrap();
        let files = CredentialFiles { ca: path("ca.crt"), cert: path("me.crt"), key: path("me.key") };
        let credentials = Credentials::load_with_crl(files, CrlFile::beside(&path("ca.crt"))).unwrap();
        let watch = |pem: &str| Box::pin(revoked(credentials.clone(), vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()]));
        let (mut its, mut others) = (watch(&host.cert_pem), watch(&other.cert_pem));
        timeout(3 * LOOK, &mut its).await.unwrap_err();

        let mut list = Crl::create(&ca).unwrap();
        list.revoke(&ca, &host.serial, SystemTime::now()).unwrap();
        fs::write(path("ca.crl"), list.pem()).unwrap();
        timeout(2 * LOOK, &mut its).await.unwrap();
        timeout(3 * LOOK, &mut others).await.unwrap_err();
    }

    #[tokio::test]
    async fn what_is_read_from_a_connection_that_ended_so_is_an_error_each_time() {
        let mut tracked = Live::default().track(tokio::io::empty(), async {});
        for _ in 0..2 {
            assert_eq!(tracked.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
        }
    }
}
