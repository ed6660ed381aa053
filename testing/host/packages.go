// SPDX-License-Identifier: Apache-2.0

package main

// A pkg is a Debian package and what the project needs it for.
type pkg struct{ name, why string }

// groups are the packages behind the targets of the Makefile.
var groups = map[string][]pkg{
	"test": {
		{"dbus", "private bus between the agent and RAUC"},
		{"rauc", "installs and signs bundles"},
		{"rauc-service", "RAUC over D-Bus"},
		{"mosquitto", "broker"},
		{"mosquitto-clients", "the messages of the documentation, as printed"},
		{"openssl", "certificates of the vehicle's broker"},
		{"squashfs-tools", "bundles"},
		{"e2fsprogs", "file systems of slots and data partition"},
		{"grub-common", "grub-editenv, to compare with"},
		{"libubootenv-tool", "fw_printenv and fw_setenv, to compare with"},
		{"containerd", "keeps images and containers"},
		{"runc", "runs containers"},
		{"crun", "runs them, too"},
		{"busybox-static", "programs in containers"},
		{"docker-registry", "images of containers"},
		{"nftables", "rules of the network of containers, to compare with"},
		{"iproute2", "links and namespaces of the network of containers, to compare with"},
	},
	"vehicle": {
		{"qemu-system-x86", "the machine"},
		{"ovmf", "UEFI firmware"},
		{"grub-common", "boot loader"},
		{"grub-efi-amd64-bin", "boot loader"},
		{"mmdebstrap", "root file system from Debian packages"},
		{"debian-archive-keyring", "signatures of these packages"},
		{"gdisk", "partition table"},
		{"dosfstools", "EFI system partition"},
		{"mtools", "files on the EFI system partition"},
		{"e2fsprogs", "root file systems"},
		{"squashfs-tools", "bundles"},
		{"xz-utils", "kernel modules of the rescue system"},
		{"zstd", "rescue system"},
		{"rauc", "signs bundles"},
		{"mosquitto-clients", "the messages of the documentation, as printed"},
		{"openssh-client", "to look into a vehicle that make demo has left running"},
		{"socat", "its serial console"},
	},
	"cgo": {
		{"gcc", "race detector"},
		{"libc6-dev", "race detector"},
	},
	"interop": {
		{"containerd", "containers of the original container management"},
		{"runc", "runs them"},
	},
	"lint": {
		{"shellcheck", "boot scripts"},
	},
}
