// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stands in for NVIDIA's driver, for QEMU's edu device, with what makes that one special:
 *
 *   - its remove function does not return while somebody uses the device,
 *   - it cannot be unloaded meanwhile, which fails at once,
 *   - its node is no child of the PCI device in sysfs,
 *   - another module uses it (nvidia_modeset), which has to go first,
 *   - users in the kernel show nowhere: /sys/module/nvidia/parameters/held is one.
 *
 * It has no alias, so nobody loads it but a test.
 */
#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/kstrtox.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/wait.h>

#include "nvidia.h"

static atomic_t users = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(left);
static bool held;

static void take(void)
{
	atomic_inc(&users);
}

static void leave(void)
{
	if (atomic_dec_and_test(&users))
		wake_up_all(&left);
}

/* Called one at a time: the kernel locks a module's parameters. */
static int set_held(const char *text, const struct kernel_param *param)
{
	bool wanted;
	int error = kstrtobool(text, &wanted);

	if (error || wanted == held)
		return error;
	if (wanted) {
		__module_get(THIS_MODULE);
		take();
	} else {
		leave();
		module_put(THIS_MODULE);
	}
	held = wanted;
	return 0;
}

static const struct kernel_param_ops held_ops = { .set = set_held, .get = param_get_bool };

module_param_cb(held, &held_ops, &held, 0644);

static int node_open(struct inode *inode, struct file *file)
{
	take();
	return 0;
}

static int node_release(struct inode *inode, struct file *file)
{
	leave();
	return 0;
}

/* The owner makes each open file a user of the module. */
static const struct file_operations node_operations = {
	.owner = THIS_MODULE,
	.open = node_open,
	.release = node_release,
};

static struct miscdevice node = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "nvidia0",
	.fops = &node_operations,
	.mode = 0666,
};

void nvidia_used(void)
{
}
EXPORT_SYMBOL_GPL(nvidia_used);

static int nvidia_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	pci_info(device, "bound\n");
	return misc_register(&node);
}

static void nvidia_remove(struct pci_dev *device)
{
	if (atomic_read(&users))
		pci_err(device, "remove waits for %d users\n", atomic_read(&users));
	wait_event(left, atomic_read(&users) == 0);
	misc_deregister(&node);
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(0x1234, 0x11e8) }, {} };

static struct pci_driver nvidia_driver = {
	.name = "nvidia",
	.id_table = ids,
	.probe = nvidia_probe,
	.remove = nvidia_remove,
};

module_pci_driver(nvidia_driver);

MODULE_DESCRIPTION("Stands in for NVIDIA's driver in tests");
MODULE_LICENSE("GPL");
