// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Makes QEMU's edu device a card that can be shared by mediated devices: it has SHARES shares, and types of one
 * and of two of them. A guest sees a PCI device 1234:11ff without registers or interrupts.
 *
 * The next `refusals` devices cannot be made, in /sys/module/lab_vgpu/parameters; counts down to 0.
 *
 * It has no alias, so nobody loads it but a test.
 */
#include <linux/mdev.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/uaccess.h>
#include <linux/vfio.h>

#define SHARES 3
/* Bits of an offset in a device's file that are within a region, as in vfio-pci. */
#define REGION_SHIFT 40
#define CONFIG_AT ((u64)VFIO_PCI_CONFIG_REGION_INDEX << REGION_SHIFT)

static unsigned int refusals;
module_param(refusals, uint, 0644);

struct card_type {
	struct mdev_type type;
	unsigned int shares;
};

struct card {
	struct mdev_parent parent;
	struct card_type small, large;
	struct mdev_type *types[2];
	struct mutex lock;
	unsigned int left;
};

struct vgpu {
	struct vfio_device vfio;
	u8 config[PCI_CFG_SPACE_SIZE];
};

static struct card *card_of(struct mdev_type *type)
{
	return container_of(type->parent, struct card, parent);
}

static unsigned int shares_of(struct mdev_type *type)
{
	return container_of(type, struct card_type, type)->shares;
}

static int take(struct mdev_type *type)
{
	struct card *card = card_of(type);
	int error = 0;

	mutex_lock(&card->lock);
	if (refusals > 0) {
		refusals--;
		error = -EIO;
	} else if (card->left < shares_of(type)) {
		error = -ENOSPC;
	} else {
		card->left -= shares_of(type);
	}
	mutex_unlock(&card->lock);
	return error;
}

static void give_back(struct mdev_type *type)
{
	struct card *card = card_of(type);

	mutex_lock(&card->lock);
	card->left += shares_of(type);
	mutex_unlock(&card->lock);
}

/* What a guest has of it. */

static int vgpu_init(struct vfio_device *device)
{
	struct vgpu *vgpu = container_of(device, struct vgpu, vfio);

	*(__le16 *)(vgpu->config + PCI_VENDOR_ID) = cpu_to_le16(0x1234);
	*(__le16 *)(vgpu->config + PCI_DEVICE_ID) = cpu_to_le16(0x11ff);
	vgpu->config[PCI_CLASS_DEVICE + 1] = PCI_CLASS_OTHERS;
	return 0;
}

static ssize_t vgpu_read(struct vfio_device *device, char __user *to, size_t count, loff_t *position)
{
	struct vgpu *vgpu = container_of(device, struct vgpu, vfio);
	loff_t offset = *position - CONFIG_AT;
	ssize_t size;

	if (offset < 0)
		return -EINVAL;
	size = simple_read_from_buffer(to, count, &offset, vgpu->config, sizeof(vgpu->config));
	*position = CONFIG_AT + offset;
	return size;
}

static ssize_t vgpu_write(struct vfio_device *device, const char __user *from, size_t count, loff_t *position)
{
	/* As registers do that are read-only. */
	*position += count;
	return count;
}

static long vgpu_info(void __user *argument)
{
	const size_t size = offsetofend(struct vfio_device_info, num_irqs);
	struct vfio_device_info info = {};

	if (copy_from_user(&info, argument, size))
		return -EFAULT;
	if (info.argsz < size)
		return -EINVAL;
	info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
	info.num_regions = VFIO_PCI_NUM_REGIONS;
	info.num_irqs = VFIO_PCI_NUM_IRQS;
	return copy_to_user(argument, &info, size) ? -EFAULT : 0;
}

static long vgpu_region_info(void __user *argument)
{
	const size_t size = offsetofend(struct vfio_region_info, offset);
	struct vfio_region_info info = {};

	if (copy_from_user(&info, argument, size))
		return -EFAULT;
	if (info.argsz < size || info.index >= VFIO_PCI_NUM_REGIONS)
		return -EINVAL;
	info.flags = 0;
	info.size = 0;
	info.cap_offset = 0;
	info.offset = (u64)info.index << REGION_SHIFT;
	if (info.index == VFIO_PCI_CONFIG_REGION_INDEX) {
		info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
		info.size = PCI_CFG_SPACE_SIZE;
	}
	return copy_to_user(argument, &info, size) ? -EFAULT : 0;
}

static long vgpu_irq_info(void __user *argument)
{
	const size_t size = offsetofend(struct vfio_irq_info, count);
	struct vfio_irq_info info = {};

	if (copy_from_user(&info, argument, size))
		return -EFAULT;
	if (info.argsz < size || info.index >= VFIO_PCI_NUM_IRQS)
		return -EINVAL;
	info.flags = 0;
	info.count = 0;
	return copy_to_user(argument, &info, size) ? -EFAULT : 0;
}

static long vgpu_ioctl(struct vfio_device *device, unsigned int command, unsigned long argument)
{
	switch (command) {
	case VFIO_DEVICE_GET_INFO:
		return vgpu_info((void __user *)argument);
	case VFIO_DEVICE_GET_REGION_INFO:
		return vgpu_region_info((void __user *)argument);
	case VFIO_DEVICE_GET_IRQ_INFO:
		return vgpu_irq_info((void __user *)argument);
	case VFIO_DEVICE_RESET:
		return 0;
	default:
		return -ENOTTY;
	}
}

static const struct vfio_device_ops vgpu_ops = {
	.name = "lab_vgpu",
	.init = vgpu_init,
	.read = vgpu_read,
	.write = vgpu_write,
	.ioctl = vgpu_ioctl,
	/* Empty where the kernel has no iommufd. */
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

/* The mediated devices. */

static int lab_make(struct mdev_device *mdev)
{
	struct vgpu *vgpu;
	int error = take(mdev->type);

	if (error)
		return error;
	vgpu = vfio_alloc_device(vgpu, vfio, &mdev->dev, &vgpu_ops);
	if (IS_ERR(vgpu)) {
		error = PTR_ERR(vgpu);
		goto failed;
	}
	error = vfio_register_emulated_iommu_dev(&vgpu->vfio);
	if (error) {
		vfio_put_device(&vgpu->vfio);
		goto failed;
	}
	dev_set_drvdata(&mdev->dev, vgpu);
	return 0;
failed:
	give_back(mdev->type);
	return error;
}

static void lab_remove(struct mdev_device *mdev)
{
	struct vgpu *vgpu = dev_get_drvdata(&mdev->dev);

	/* Waits for whoever has it open. */
	vfio_unregister_group_dev(&vgpu->vfio);
	vfio_put_device(&vgpu->vfio);
	give_back(mdev->type);
}

static unsigned int lab_available(struct mdev_type *type)
{
	return READ_ONCE(card_of(type)->left) / shares_of(type);
}

static ssize_t lab_description(struct mdev_type *type, char *text)
{
	return sysfs_emit(text, "shares=%u\nof=%u\n", shares_of(type), SHARES);
}

static struct mdev_driver mediated_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.probe = lab_make,
	.remove = lab_remove,
	.get_available = lab_available,
	.show_description = lab_description,
	.driver = {
		.name = "lab_vgpu_mdev",
		.owner = THIS_MODULE,
		.mod_name = KBUILD_MODNAME,
	},
};

/* The card. */

static int card_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	struct card *card = devm_kzalloc(&device->dev, sizeof(*card), GFP_KERNEL);

	if (!card)
		return -ENOMEM;
	mutex_init(&card->lock);
	card->left = SHARES;
	card->small = (struct card_type){ { .sysfs_name = "small", .pretty_name = "Lab vGPU S" }, 1 };
	card->large = (struct card_type){ { .sysfs_name = "large", .pretty_name = "Lab vGPU L" }, 2 };
	card->types[0] = &card->small.type;
	card->types[1] = &card->large.type;
	pci_set_drvdata(device, card);
	return mdev_register_parent(&card->parent, &device->dev, &mediated_driver, card->types,
				    ARRAY_SIZE(card->types));
}

static void card_remove(struct pci_dev *device)
{
	struct card *card = pci_get_drvdata(device);

	mdev_unregister_parent(&card->parent);
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(0x1234, 0x11e8) }, {} };

static struct pci_driver card_driver = {
	.name = "lab_vgpu",
	.id_table = ids,
	.probe = card_probe,
	.remove = card_remove,
};

static int __init lab_start(void)
{
	int error = mdev_register_driver(&mediated_driver);

	if (error)
		return error;
	error = pci_register_driver(&card_driver);
	if (error)
		mdev_unregister_driver(&mediated_driver);
	return error;
}

static void __exit lab_end(void)
{
	pci_unregister_driver(&card_driver);
	mdev_unregister_driver(&mediated_driver);
}

module_init(lab_start);
module_exit(lab_end);
MODULE_DESCRIPTION("A card that is shared by mediated devices");
MODULE_LICENSE("GPL");
