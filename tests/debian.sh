# To be sourced: where Debian's packages come from on this machine, for roots and images that mmdebstrap builds.

# Debian's own archive as this machine's apt knows it: a mirror, a proxy or the default. PVELET_GUEST_MIRROR overrules.
debian_site() {
  local site=${PVELET_GUEST_MIRROR:-$(debian_known_site)}
  if [ -z "$site" ]; then
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi >&2
    site=$(debian_known_site)
  fi
  [ -n "$site" ] || { echo "apt knows no Debian archive here; set PVELET_GUEST_MIRROR" >&2; return 1; }
  echo "$site"
}

debian_known_site() {
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | sed -n 1p
}

# The keys of the archive; the file's name has changed with Debian 13.
debian_keyring() {
  ls /usr/share/keyrings/debian-archive-keyring.{pgp,gpg} 2>/dev/null | head -n1 || true
}

# How this machine reaches its mirror (proxies, certificates, clocks), for mmdebstrap's --aptopt; not to be left in what is built.
debian_apt_options() {
  apt-config dump Acquire | { grep -E '^Acquire::(https?|Check-Valid-Until|Check-Date|Retries)(::| )' || true; }
}
