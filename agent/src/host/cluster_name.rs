//! The PVE cluster's name where the cluster file system must not be asked, since it may hang.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
};

/// More is no configuration of corosync.
const LARGEST: u64 = 1 << 20;

/// The name that corosync's configuration gives the cluster; `None`: the node stands alone, or the file names none.
///
/// # Errors
/// The file is there and cannot be read.
pub fn of_corosync(file: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    match File::open(file).and_then(|f| f.take(LARGEST).read_to_string(&mut text)) {
        Ok(_) => Ok(parse(&text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse(text: &str) -> Option<String> {
    let named = text.lines().find_map(|line| line.trim().strip_prefix("cluster_name")?.trim_start().strip_prefix(':'));
    named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cluster_is_named_and_a_node_alone_is_not() {
        let text = "nodelist {\n  node {\n    name: pve1\n  }\n}\n\ntotem {\n  cluster_name: lab\n  config_version: 3\n}\n";
        assert_eq!(parse(text).unwrap(), "lab");
        assert_eq!(parse("totem {\n cluster_name:\n}\n"), None);
        assert_eq!(parse(""), None);
        assert_eq!(of_corosync(Path::new("/nonexistent/corosync.conf")).unwrap(), None);
    }
}
