#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;

use prost::Message;
use prost_types::FileDescriptorSet;
use pvelet_proto::reason;

use super::*;

/// Every method of everything that is served.
fn served() -> BTreeSet<String> {
    let sets = [
        pvelet_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = BTreeSet::new();
    for file in sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file) {
        for service in &file.service {
            methods.extend(service.method.iter().map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
        }
    }
    methods
}

fn id(path: &str) -> Identity {
    Identity::parse(&format!("spiffe://a.b/{path}")).unwrap()
}

#[test]
fn every_served_method_stands_in_the_table_and_nothing_else() {
    let table: BTreeSet<String> = roles::TABLE.iter().map(|r| r.path.to_owned()).collect();
    assert_eq!(table.len(), roles::TABLE.len(), "a method stands twice");
    assert_eq!(table, served());
}

#[test]
fn every_method_is_open_to_its_role_and_those_above_it() {
    for rule in roles::TABLE {
        for role in [Role::Reader, Role::Operator, Role::Admin] {
            let allowed = roles::admit(&id(&format!("role/{role}/x")), rule.path).is_ok();
            assert_eq!(allowed, role >= rule.role, "{role} {}", rule.path);
        }
        assert_eq!(roles::admit(&id("tenant/t/x"), rule.path).is_ok(), rule.tenants, "tenant {}", rule.path);
        assert!(roles::admit(&id("cluster/c/host/h"), rule.path).is_err(), "host {}", rule.path);
    }
}

#[test]
fn streams_hold_places_of_their_own() {
    for file in FileDescriptorSet::decode(pvelet_proto::FILE_DESCRIPTOR_SET).unwrap().file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let rule = roles::TABLE.iter().find(|r| r.path == path).unwrap();
                assert_eq!(rule.class == crate::limits::Class::Stream, method.server_streaming(), "{path}");
            }
        }
    }
}

#[test]
fn a_method_that_is_not_in_the_table_is_denied_to_all() {
    for path in ["/pvelet.v1.VmService/Format", "/pvelet.v1.VmService/ListVms/", "", "/"] {
        let error = roles::admit(&id("role/admin/x"), path).unwrap_err();
        assert_eq!(error.reason(), reason::ROLE, "{path}");
    }
}

#[test]
fn tenants_are_kept_apart() {
    let rule = |uri: &str, tenants: &[&str]| IdentityRule {
        uri: format!("spiffe://a.b/{uri}"),
        tenants: tenants.iter().map(|t| (*t).to_owned()).collect(),
        vlans: None,
    };
    let open = Authorizer::new(&[]);
    let listed = Authorizer::new(&[rule("role/operator/c", &["*"]), rule("role/operator/d", &["t1"]), rule("role/operator/d", &["t2"])]);
    let vm = |owner| Target::Vm { vmid: 100, owner };
    let op = |tenant| Target::Operation { name: "operations/x", tenant };
    use Verb::{Mutate, Read};
    type Row<'a> = (&'a Authorizer, &'a str, &'a str, Verb, Target<'a>, Option<&'a str>);
    let rows: &[Row<'_>] = &[
        (&open, "role/operator/x", "t1", Mutate, Target::New, None),
        (&open, "role/operator/x", "t1", Mutate, vm(Some("t1")), None),
        (&open, "role/operator/x", "t1", Mutate, vm(None), None),
        (&open, "role/operator/x", "t1", Mutate, vm(Some("t2")), Some(reason::SCOPE_VM)),
        (&open, "role/admin/x", "t1", Mutate, vm(Some("t2")), Some(reason::SCOPE_VM)),
        (&open, "role/reader/x", "", Read, vm(Some("t2")), None),
        (&listed, "role/operator/c", "t9", Mutate, Target::New, None),
        (&listed, "role/operator/d", "t1", Mutate, Target::New, None),
        (&listed, "role/operator/d", "t2", Mutate, Target::New, None),
        (&listed, "role/operator/d", "t3", Mutate, Target::New, Some(reason::SCOPE_TENANT)),
        (&listed, "role/operator/d", "t1", Mutate, op("t3"), Some(reason::SCOPE_TENANT)),
        (&listed, "role/operator/d", "t1", Mutate, op("t2"), None),
        (&listed, "role/operator/e", "t1", Mutate, Target::New, Some(reason::SCOPE_TENANT)),
        (&listed, "role/operator/e", "", Read, op("t1"), None),
        (&listed, "role/admin/e", "t1", Mutate, Target::New, None),
        (&open, "tenant/t1/x", "t1", Mutate, Target::New, None),
        (&open, "tenant/t1/x", "t2", Mutate, Target::New, Some(reason::SCOPE_TENANT)),
        (&open, "tenant/t1/x", "t2", Read, Target::Host, Some(reason::SCOPE_TENANT)),
        (&open, "tenant/t1/x", "", Mutate, Target::New, Some(reason::SCOPE_TENANT)),
        (&open, "tenant/t1/x", "", Read, vm(Some("t1")), None),
        (&open, "tenant/t1/x", "", Read, vm(Some("t2")), Some(reason::VM_NOT_FOUND)),
        (&open, "tenant/t1/x", "", Read, vm(None), Some(reason::VM_NOT_FOUND)),
        (&open, "tenant/t1/x", "t1", Mutate, vm(Some("t2")), Some(reason::VM_NOT_FOUND)),
        (&open, "tenant/t1/x", "t1", Mutate, vm(None), Some(reason::VM_NOT_FOUND)),
        (&open, "tenant/t1/x", "t1", Mutate, op("t2"), Some(reason::OPERATION_NOT_FOUND)),
        (&open, "tenant/t1/x", "", Read, op("t1"), None),
        (&open, "cluster/c/host/h", "", Read, Target::Host, Some(reason::SCOPE_TENANT)),
    ];
    for (authorizer, who, tenant, verb, target, wanted) in rows {
        let found = authorizer.authorize(&id(who), tenant, *verb, *target).err().map(|e| e.reason());
        assert_eq!(found, *wanted, "{who} for '{tenant}' {verb:?} {target:?}");
    }
}

#[test]
fn a_reload_takes_rights_away_at_once() {
    let authorizer = Authorizer::new(&[]);
    let who = id("role/operator/x");
    assert!(authorizer.authorize(&who, "t", Verb::Mutate, Target::New).is_ok());
    authorizer.replace(&[IdentityRule { uri: "spiffe://a.b/role/operator/y".into(), tenants: vec!["*".into()], vlans: None }]);
    assert!(authorizer.authorize(&who, "t", Verb::Mutate, Target::New).is_err());
}

#[test]
fn vlans_are_kept_to_where_they_are_listed() {
    let identity = |name: &str| Identity::parse(&format!("spiffe://a.b/role/operator/{name}")).unwrap();
    let rule = |name: &str, vlans: Option<&[(u16, u16)]>| IdentityRule {
        uri: identity(name).to_string(),
        tenants: vec!["*".into()],
        vlans: vlans.map(<[_]>::to_vec),
    };
    let authorizer = Authorizer::new(&[
        rule("some", Some(&[(100, 150)])),
        rule("some", Some(&[(151, 199), (7, 7)])),
        rule("none", Some(&[])),
        rule("all", None),
        rule("both", Some(&[(1, 1)])),
        rule("both", None),
    ]);
    for (name, first, last, allowed) in [
        ("some", 100, 199, true),
        ("some", 7, 7, true),
        ("some", 99, 100, false),
        ("some", 199, 200, false),
        ("none", 1, 1, false),
        ("all", 1, 4094, true),
        ("both", 1, 4094, true),
        ("unlisted", 1, 4094, true),
    ] {
        let found = authorizer.vlans(&identity(name)).allow(first, last);
        assert_eq!(found.is_ok(), allowed, "{name} {first}-{last}");
    }
    let error = authorizer.vlans(&identity("some")).allow(198, 4094).unwrap_err();
    assert!(error.to_string().contains("VLAN 200"), "{error}");
    assert_eq!(error.reason(), pvelet_proto::reason::SCOPE_NETWORK);
}
