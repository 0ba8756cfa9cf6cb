//! User data in folders, laid out as Kubernetes mounts Secrets and ConfigMaps: `secrets/<name>/<key>` and `configmaps/<name>/<key>` below the
//! folder of the manifests. Of another namespace than `default`: `secrets/<namespace>_<name>/<key>`; no name of Kubernetes has a `_` in it.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::fcntl::OFlag;

use crate::{
    kind::{DataKeyRef, UserDataRef},
    store::{USER_DATA_LARGEST, UserDataError, user_data_of_size},
};

/// Reads it. Blocks on the disk.
pub(super) fn read(dir: &Path, namespace: &str, from: &UserDataRef) -> Result<Vec<u8>, UserDataError> {
    let (kind, folder, named) = match (&from.secret_ref, &from.config_map_ref) {
        (Some(named), _) => ("Secret", "secrets", named),
        (None, Some(named)) => ("ConfigMap", "configmaps", named),
        (None, None) => return Err(UserDataError::NotFound { what: "user data without a name".to_owned(), place: String::new() }),
    };
    let DataKeyRef { name, key } = named;
    let what = format!("{kind} {namespace}/{name}");
    let all = dir.join(folder);
    let object = all.join(if namespace == "default" { name.clone() } else { format!("{namespace}_{name}") });
    let path = object.join(key);
    let trouble = |at: &Path, error: io::Error| match error.kind() {
        ErrorKind::PermissionDenied => UserDataError::Forbidden {
            what: what.clone(),
            why: format!("may not be read by the controller ({})", at.display()),
            remedy: "give the folder and its files to the controller's user".to_owned(),
        },
        _ => UserDataError::Unavailable { what: what.clone(), why: format!("{}: {error}", at.display()) },
    };
    let not_found = || UserDataError::NotFound { what: what.clone(), place: format!(" (looked for {})", path.display()) };
    if kind == "Secret" {
        // Whoever cannot enter this folder can read nothing in it, whatever the modes below are.
        match std::fs::metadata(&all) {
            Ok(found) if found.permissions().mode() & 0o007 != 0 => {
                return Err(UserDataError::Forbidden {
                    what,
                    why: format!("is not taken from {}, which everybody may open", all.display()),
                    remedy: format!("run `chmod o= {}`", all.display()),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(not_found()),
            Err(error) => return Err(trouble(&all, error)),
        }
    }
    match std::fs::metadata(&object) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(not_found()),
        Err(error) => return Err(trouble(&object, error)),
    }
    // Links are followed: a mounted Secret is made of them. Something that is no file would block at its opening.
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
    let file: File = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(UserDataError::NoKey { what, key: key.clone() }),
        Err(error) => return Err(trouble(&path, error)),
    };
    let found = file.metadata().map_err(|error| trouble(&path, error))?;
    if !found.is_file() {
        return Err(UserDataError::Unavailable { what, why: format!("{} is no file", path.display()) });
    }
    if found.len() > USER_DATA_LARGEST as u64 {
        return Err(UserDataError::TooLarge { what, key: key.clone(), size: found.len() });
    }
    let mut data = Vec::new();
    file.take(USER_DATA_LARGEST as u64 + 1).read_to_end(&mut data).map_err(|error| trouble(&path, error))?;
    user_data_of_size(&what, key, data)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs::{self, Permissions},
        os::unix::fs::symlink,
    };

    use super::*;

    fn named(name: &str, key: &str) -> Option<DataKeyRef> {
        Some(DataKeyRef { name: name.into(), key: key.into() })
    }

    fn secret(name: &str, key: &str) -> UserDataRef {
        UserDataRef { secret_ref: named(name, key), config_map_ref: None }
    }

    fn map(name: &str, key: &str) -> UserDataRef {
        UserDataRef { secret_ref: None, config_map_ref: named(name, key) }
    }

    #[test]
    fn data_is_read_as_kubernetes_mounts_it_and_what_is_missing_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["secrets/worker/..data_1", "secrets/team-a_worker", "configmaps/base"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::set_permissions(at("secrets"), Permissions::from_mode(0o750)).unwrap();
        // A mounted Secret: links to a folder that is replaced as a whole.
        fs::write(at("secrets/worker/..data_1/talos"), [b'm', 0, 255]).unwrap();
        symlink("..data_1", at("secrets/worker/..data")).unwrap();
        symlink("..data/talos", at("secrets/worker/talos")).unwrap();
        fs::write(at("secrets/team-a_worker/talos"), "theirs").unwrap();
        fs::write(at("configmaps/base/user"), "#cloud-config").unwrap();
        fs::write(at("configmaps/base/empty"), "").unwrap();
        File::create(at("configmaps/base/large")).unwrap().set_len(USER_DATA_LARGEST as u64 + 1).unwrap();
        fs::create_dir(at("configmaps/base/folder")).unwrap();
        let got = |namespace: &str, from: UserDataRef| read(dir.path(), namespace, &from);
        assert_eq!(got("default", secret("worker", "talos")).unwrap(), [b'm', 0, 255]);
        assert_eq!(got("team-a", secret("worker", "talos")).unwrap(), b"theirs");
        assert_eq!(got("default", map("base", "user")).unwrap(), b"#cloud-config");
        for (namespace, from, reason, says) in [
            ("default", secret("other", "talos"), "USER_DATA_NOT_FOUND", "Secret default/other does not exist"),
            ("default", map("worker", "talos"), "USER_DATA_NOT_FOUND", "ConfigMap default/worker does not exist"),
            ("team-b", secret("worker", "talos"), "USER_DATA_NOT_FOUND", "secrets/team-b_worker/talos"),
            ("default", secret("worker", "other"), "USER_DATA_KEY_NOT_FOUND", "no key 'other'"),
            ("default", map("base", "empty"), "USER_DATA_EMPTY", "key 'empty'"),
            ("default", map("base", "large"), "USER_DATA_TOO_LARGE", "524289 bytes"),
            ("default", map("base", "folder"), "USER_DATA_UNAVAILABLE", "no file"),
        ] {
            let error = got(namespace, from).unwrap_err();
            assert_eq!(error.reason(), reason, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn secrets_that_everybody_may_open_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        fs::create_dir_all(secrets.join("worker")).unwrap();
        fs::write(secrets.join("worker/talos"), "s3cret").unwrap();
        for (mode, fine) in [(0o755, false), (0o701, false), (0o750, true), (0o700, true)] {
            fs::set_permissions(&secrets, Permissions::from_mode(mode)).unwrap();
            let read = read(dir.path(), "default", &secret("worker", "talos"));
            match read {
                Ok(_) => assert!(fine, "{mode:o}"),
                Err(error) => {
                    assert!(!fine && error.reason() == "USER_DATA_FORBIDDEN", "{mode:o}: {error}");
                    assert!(error.to_string().contains("chmod o=") && !error.to_string().contains("s3cret"), "{error}");
                }
            }
        }
    }
}
