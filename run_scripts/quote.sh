# quote PATH: the path as one value of a Hydra override, by the rules of cppo_verl/launch/quoting.py.
quote() {
  if [[ $1 =~ ^/[A-Za-z0-9_./-]*$ ]]; then echo "$1"; return; fi
  sed -E "s/(\\\\*)'/\\1\\1\\\\'/g; s/(\\\\*)\$/\\1\\1/; s/^.*\$/'&'/" <<<"$1" # a backslash counts only before a quote
}
