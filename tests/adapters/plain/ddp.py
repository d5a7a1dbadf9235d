import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

dist.init_process_group("gloo")
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
dataset = TensorDataset(images, torch.tensor(digits.target))
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
model = DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size=32, sampler=sampler)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8 * len(loader))
for epoch in range(8):
    sampler.set_epoch(epoch)
    for inputs, target in loader:
        cross_entropy(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
dist.destroy_process_group()
