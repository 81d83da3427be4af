"""One module for each way in which distributions keep kernel arguments; `LOADERS` names them all."""

from virtpass.host.boot import Loader
from virtpass.host.loaders.extlinux import Extlinux
from virtpass.host.loaders.grub import Grub
from virtpass.host.loaders.grub_bls import GrubBls
from virtpass.host.loaders.kernelstub import Kernelstub
from virtpass.host.loaders.limine import Limine
from virtpass.host.loaders.loader_entries import LoaderEntries
from virtpass.host.loaders.ostree import Ostree
from virtpass.host.loaders.proxmox import Proxmox
from virtpass.host.loaders.refind import Refind
from virtpass.host.loaders.sdboot_manage import SdbootManage
from virtpass.host.loaders.sdbootutil import Sdbootutil
from virtpass.host.loaders.systemd_boot import SystemdBoot
from virtpass.host.loaders.transactional import Transactional
from virtpass.host.loaders.uki import Uki

LOADERS: tuple[Loader, ...] = (
    Grub(),
    Extlinux(),
    Limine(),
    Refind(),
    GrubBls(),
    Ostree(),
    Sdbootutil(),
    Transactional(),
    Kernelstub(),
    LoaderEntries(),
    Proxmox(),
    SdbootManage(),
    SystemdBoot(),
    Uki(),
)
