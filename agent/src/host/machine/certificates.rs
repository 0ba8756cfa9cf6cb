//! PVE's certificates of this node.

use std::{fs, path::Path};

use rustls::{
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use super::{CertificateFile, KeyMatch, read};
use crate::error::Error;

/// A chain of certificates has some ten kilobytes.
const LARGEST: u64 = 1 << 20;

/// The cluster's CA, the node's own, and the one that an administrator or ACME gave the web interface.
///
/// # Errors
/// `Look` when the cluster file system is not there: then nothing is known of its files.
pub(super) fn read(etc_pve: &Path, node: &str) -> Result<Vec<CertificateFile>, Error> {
    let folder = etc_pve.join("nodes").join(node);
    fs::metadata(&folder).map_err(|e| read::io_error(&folder, &e))?;
    Ok(vec![
        one(&etc_pve.join("pve-root-ca.pem"), None, true),
        one(&folder.join("pve-ssl.pem"), Some(&folder.join("pve-ssl.key")), true),
        one(&folder.join("pveproxy-ssl.pem"), Some(&folder.join("pveproxy-ssl.key")), false),
    ])
}

fn one(path: &Path, key: Option<&Path>, own: bool) -> CertificateFile {
    let pem = read::text(path, LARGEST);
    let key = match (&pem, key) {
        (Ok(Some(pem)), Some(key)) => matches(pem, key),
        _ => KeyMatch::Untold,
    };
    CertificateFile { path: path.to_owned(), own, pem, key }
}

fn matches(pem: &str, key: &Path) -> KeyMatch {
    let text = match read::text(key, LARGEST) {
        Ok(Some(text)) => text,
        Ok(None) => return KeyMatch::Missing,
        Err(_) => return KeyMatch::Untold,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let (Ok(chain), Ok(key)) = (chain, PrivateKeyDer::from_pem_slice(text.as_bytes())) else { return KeyMatch::Untold };
    // A kind of key that this library cannot sign with (a small RSA key) is none that is known to differ.
    let Ok(key) = default_provider().key_provider.load_private_key(key) else { return KeyMatch::Untold };
    match CertifiedKey::new(chain, key).keys_match() {
        Ok(()) => KeyMatch::Matches,
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => KeyMatch::Differs,
        Err(_) => KeyMatch::Untold,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("nodes/pve1");
        assert!(read(dir.path(), "pve1").is_err(), "nothing is mounted there");
        fs::create_dir_all(&folder).unwrap();
        let made = || rcgen::generate_simple_self_signed(["pve1".to_owned()]).unwrap();
        let (a, b) = (made(), made());
        fs::write(folder.join("pve-ssl.pem"), a.cert.pem()).unwrap();
        let key = || read(dir.path(), "pve1").unwrap()[1].key;
        assert_eq!(key(), KeyMatch::Missing);
        for (text, outcome) in [
            (a.signing_key.serialize_pem(), KeyMatch::Matches),
            (b.signing_key.serialize_pem(), KeyMatch::Differs),
            ("garbage".to_owned(), KeyMatch::Untold),
        ] {
            fs::write(folder.join("pve-ssl.key"), text).unwrap();
            assert_eq!(key(), outcome);
        }
        let all = read(dir.path(), "pve1").unwrap();
        assert_eq!(all[0].pem, Ok(None));
        assert_eq!(all[1].pem, Ok(Some(a.cert.pem())));
        assert_eq!((&all[2].pem, all[2].key), (&Ok(None), KeyMatch::Untold));
        // What is no file cannot be read: that is something else than not being there.
        fs::create_dir(folder.join("pveproxy-ssl.pem")).unwrap();
        assert!(read(dir.path(), "pve1").unwrap()[2].pem.is_err());
    }
}
