#!/bin/sh
# An image of a binary that was built here, with the libraries that it needs and nothing else: no base image is fetched. For
# x86-64, where the loader is in /lib64.
#
#     examples/deploy/image.sh target/release/moi moi
#     podman run --rm -p 8080:8080 -v moi-cache:/cache moi --api-key KEY
set -eu
binary=$1 tag=$2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/lib64" "$root/cache" "$root/tmp"
chmod 1777 "$root/tmp"
cp "$binary" "$root/bin/moi"
# The loader among them has its place in /lib64, and the others are found there.
ldd "$binary" | grep -o '/[^ )]*' | while read -r library; do cp -L "$library" "$root/lib64/"; done
cat >"$root/Containerfile" <<'END'
FROM scratch
COPY bin /bin
COPY lib64 /lib64
COPY tmp /tmp
# A volume is made with the owner of what it is mounted over.
COPY --chown=65532:65532 cache /cache
ENV MOI_CACHE=/cache HF_HOME=/cache/hub LD_LIBRARY_PATH=/lib64
USER 65532
VOLUME /cache
EXPOSE 8080
# SIGTERM drains: give the container more than --shutdown-timeout to stop (podman stop --time 45).
STOPSIGNAL SIGTERM
ENTRYPOINT ["/bin/moi", "serve", "--host", "0.0.0.0", "--port", "8080"]
END
buildah bud --isolation "${BUILDAH_ISOLATION:-oci}" --tag "$tag" --file "$root/Containerfile" "$root"
