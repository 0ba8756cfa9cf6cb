#!/usr/bin/env bash
# ansible-lint with the production profile, the syntax of all playbooks, and the tests of the collection's plugins.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$(tests/ansible/build.sh):$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A collection is found by its place in a tree.
mkdir -p "$work/ansible_collections/pvelet"
ln -s "$PWD/ansible" "$work/ansible_collections/pvelet/pvelet"
export ANSIBLE_COLLECTIONS_PATH=$work ANSIBLE_HOME=$work/home ANSIBLE_LOCALHOST_WARNING=false PYTHONDONTWRITEBYTECODE=1

for playbook in ansible/playbooks/*.yml; do
  ansible-playbook --syntax-check --inventory ansible/inventory/example/hosts.yml "$playbook" >/dev/null
done
ansible-doc --type role pvelet.pvelet.pvelet_agent >/dev/null
for plugin in ansible/plugins/modules/*.py; do
  ansible-doc "pvelet.pvelet.$(basename "$plugin" .py)" >/dev/null
done
# Its own cache goes beside what it lints.
(cd "$work/ansible_collections/pvelet/pvelet" && ansible-lint --offline --profile production -q .)
python3 -m unittest discover --start-directory tests/ansible --quiet
echo "ansible: lint (production), syntax and plugins are good"
