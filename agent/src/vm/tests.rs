//! Tests of the VM operations against the fake.
