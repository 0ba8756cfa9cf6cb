//! What a freshly installed cluster has under `/etc/pve`.

use super::Store;

/// Storages with the paths of a real host; each node finds them below its own root. One is right, and the others are wrong in one way each.
const STORAGE_CFG: &str = "\
dir: local
\tpath /var/lib/vz
\tcontent rootdir,vztmpl,images,snippets,iso,backup,import

dir: rawdir
\tpath /srv/raw
\tcontent images
\tshared 0

dir: small
\tpath /srv/small
\tcontent images
\tis_mountpoint 1

dir: isoonly
\tpath /srv/isoonly
\tcontent iso

dir: offline
\tpath /srv/offline
\tcontent images
\tis_mountpoint 1

dir: disabled
\tdisable
\tpath /srv/raw
\tcontent images

dir: othernode
\tpath /srv/raw
\tcontent images
\tnodes pve2

dir: shared
\tpath /mnt/pve/shared
\tcontent images
\tshared 1

";

const FOLDERS: [&str; 8] = ["priv/lock", "priv/acme", "virtual-guest", "firewall", "sdn", "mapping", "ha", "nodes"];
const NODE_FOLDERS: [&str; 4] = ["lxc", "priv", "openvz", "qemu-server"];

/// Puts into the store what is missing there of a fresh cluster: folders, storages, users.
pub fn seed(store: &Store) {
    for folder in FOLDERS {
        store.ensure_folder(folder);
    }
    let nodes: Vec<String> = store.with_nodes(|nodes| nodes.iter().map(|node| node.name.clone()).collect());
    for node in &nodes {
        for folder in NODE_FOLDERS {
            store.ensure_folder(&format!("nodes/{node}/{folder}"));
        }
    }
    let key = format!("{}{}\n", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let public = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", uuid::Uuid::new_v4().simple());
    let files = [
        ("storage.cfg", STORAGE_CFG),
        ("user.cfg", "user:root@pam:1:0::::::\n\n\npool:p1::::\n\n\n"),
        ("datacenter.cfg", "keyboard: en-us\n"),
        (
            "vzdump.cron",
            "# cluster wide vzdump cron schedule\n# Automatically generated file - do not edit\n\nPATH=\"/usr/sbin:/usr/bin:/sbin:/bin\"\n\n",
        ),
        ("replication.cfg", ""),
        ("jobs.cfg", ""),
        ("ha/resources.cfg", ""),
        ("ha/manager_status", "{}"),
        ("priv/authkey.key", &key),
        ("authkey.pub", &public),
    ];
    for (path, content) in files {
        store.ensure_file(path, content.as_bytes());
    }
}
