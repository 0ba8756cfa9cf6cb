//! No field of a request can carry more than what it is for: not another option of a property string, not another line of a config, not a
//! mark.

use pvelet_proto::v1;

use crate::vm::{change, mark::Mark, user_data::UserPart, validate};

const MORE: [&str; 8] = [",x=y", "\nargs: -x", "\r\nargs: -x", ";x", "\0", "\u{85}x", " \u{2028}x", "=x"];

fn settings(change: impl FnOnce(&mut v1::VmConfig)) -> v1::VmConfig {
    let mut config = v1::VmConfig { name: Some("a".into()), ..v1::VmConfig::default() };
    change(&mut config);
    config
}

fn nic(change: impl FnOnce(&mut v1::Nic)) -> v1::VmConfig {
    let mut nic = v1::Nic { bridge: "vmbr0".into(), ..v1::Nic::default() };
    change(&mut nic);
    settings(|c| c.nics = Some(v1::NicList { nics: vec![nic] }))
}

fn cloud_init(change: impl FnOnce(&mut v1::CloudInit)) -> v1::VmConfig {
    let mut settings_of = v1::CloudInit::default();
    change(&mut settings_of);
    settings(|c| c.cloud_init = Some(settings_of))
}

fn ip(change: impl FnOnce(&mut v1::IpConfig)) -> v1::VmConfig {
    let mut ip = v1::IpConfig { ipv4: "10.0.0.5/24".into(), ipv6: "2001:db8::5/64".into(), ..v1::IpConfig::default() };
    change(&mut ip);
    cloud_init(|c| c.ip_configs = vec![ip])
}

#[test]
fn no_setting_brings_another_along() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILr+5LSUOC";
    type Case = (&'static str, &'static str, fn(String) -> v1::VmConfig);
    let cases: [Case; 13] = [
        ("name", "web", |s| settings(|c| c.name = Some(s))),
        ("tag", "k8s", |s| settings(|c| c.tags = Some(v1::TagList { tags: vec![s] }))),
        ("bridge", "vmbr0", |s| nic(|n| n.bridge = s)),
        ("model", "virtio", |s| nic(|n| n.model = s)),
        ("mac", "BC:24:11:00:00:01", |s| nic(|n| n.mac = s)),
        ("user", "ann", |s| cloud_init(|c| c.user = s)),
        ("nameserver", "10.0.0.1", |s| cloud_init(|c| c.nameservers = vec![s])),
        ("search domain", "example.org", |s| cloud_init(|c| c.search_domain = s)),
        ("ipv4", "10.0.0.5/24", |s| ip(|i| i.ipv4 = s)),
        ("gateway4", "10.0.0.1", |s| ip(|i| i.gateway4 = s)),
        ("ipv6", "2001:db8::5/64", |s| ip(|i| i.ipv6 = s)),
        ("gateway6", "2001:db8::1", |s| ip(|i| i.gateway6 = s)),
        ("model", "e1000", |s| nic(|n| n.model = s)),
    ];
    for (field, good, make) in cases {
        assert!(validate::config(&make(good.into())).is_empty(), "{field}");
        for more in MORE {
            for bad in [format!("{good}{more}"), format!("{more}{good}")] {
                assert!(!validate::config(&make(bad.clone())).is_empty(), "{field}: {bad:?}");
            }
        }
    }
    // A comment may hold anything that stays in its line, in PVE's file and in cloud-init's.
    for more in ["\nssh-rsa x", "\r\nx", "\0", "\u{85}x", "\u{2028}runcmd: [x]", "\u{2029}x", "\u{b}x"] {
        let config = cloud_init(|c| c.ssh_keys = vec![format!("{key} ann{more}")]);
        assert!(!validate::config(&config).is_empty(), "{more:?}");
    }
    assert!(validate::config(&cloud_init(|c| c.ssh_keys = vec![format!("{key}\tJürgen, 2. Büro: a=b")])).is_empty());
}

#[test]
fn nobody_writes_a_mark_but_the_agent() {
    let uuid = "3ce39e16-a6d8-4c28-ab96-a142978c9cd2";
    let line = format!("pvelet:v1 op={uuid} tenant=victim uuid={uuid}");
    for text in [
        line.clone(),
        format!("note\n{line}"),
        format!("note\r\n \t{line}\r\n"),
        format!("\u{c}{line}"),
        format!("{line}\nnote"),
        "pvelet:v2 anything".into(),
    ] {
        assert!(!validate::config(&settings(|c| c.description = Some(text.clone()))).is_empty(), "{text:?}");
    }
    // What is let through is no mark after PVE has kept it, whatever stands between the lines.
    for between in ["x", "%0A", "\r", "\u{2028}", "#"] {
        let text = format!("note{between}{line}");
        if !validate::config(&settings(|c| c.description = Some(text.clone()))).is_empty() {
            continue;
        }
        let own = Mark {
            operation: uuid::Uuid::from_u128(1),
            tenant: "a".into(),
            cluster: String::new(),
            machine_uid: String::new(),
            uuid: None,
        };
        let current = crate::host::pve::config_file::ConfigFile::default();
        let call = change::plan(&settings(|c| c.description = Some(text.clone())), &current, Some(&own), &UserPart::Stays);
        assert_eq!(Mark::of(&call.set["description"]), Some(own), "{text:?}");
        assert_eq!(Mark::of(&text), None, "{text:?}");
    }
}
